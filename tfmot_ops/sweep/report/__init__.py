"""Reports of a sweep: the HTML page, the listing in the terminal, and the progress."""
