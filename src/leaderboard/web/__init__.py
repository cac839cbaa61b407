"""The pages for people: the home page at `/` and the API reference at `/docs`."""
