"""`cogrpo reproduce`: the paper's tables in form, on the embedded world."""
