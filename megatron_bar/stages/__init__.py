"""One module a stage, but one for all that train on rows of tokens. `registry` lists them."""
