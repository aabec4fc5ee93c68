"""The version of mpcompile, for artifacts, studies and keys. Imports nothing."""

VERSION = "0.1.0"
