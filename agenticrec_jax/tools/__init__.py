"""The recommendation tools and the fitted artifacts behind them."""
