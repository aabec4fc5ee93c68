"""The report of an optimization: its numbers, figures and the page that shows them. Imports nothing."""
