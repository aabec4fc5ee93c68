"""From a model to segments: capture, rewrite, partition, and the forms that backends read. Imports torch."""
