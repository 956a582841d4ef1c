"""The parts of the documentation that are made from the code; `make docs` puts them into the pages."""
