"""`make demo`: the whole system from the base model to a better one, under load, with a report."""
