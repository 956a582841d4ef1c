"""What a sweep shows: the page, the listing and the progress."""
