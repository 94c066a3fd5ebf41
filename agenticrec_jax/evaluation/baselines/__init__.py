"""Every row of the results table on the same candidate lists."""
