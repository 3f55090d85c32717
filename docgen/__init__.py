"""The reference pages of the documentation, made from the code each time that the site is built (`make docs`)."""
