"""Language models as recommenders, without an agent: methods that rank by completions of text."""
