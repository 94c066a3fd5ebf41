"""The recommendation tools and the fitted artefacts behind them."""
