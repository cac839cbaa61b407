"""The two pages for people: the board at `/` and the API reader at `/docs`. Ask `pages.Pages` for them."""
