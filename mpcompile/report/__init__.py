"""The report as pictures: what is traced while optimizing, and the page that shows it. Imports nothing."""
