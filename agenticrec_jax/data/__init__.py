"""Interaction logs, splits, frozen candidate lists and the examples made from them."""
