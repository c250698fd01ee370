"""One module for each notebook, one function for each exercise."""
