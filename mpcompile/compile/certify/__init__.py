"""Certificates: tests on texts that nothing was chosen on how much a point loses. Imports no torch."""

from mpcompile.compile.certify.drop import Counts, bound_drop, p_value
from mpcompile.compile.certify.sequence import Certificate, find_certified
from mpcompile.compile.certify.sizes import check_texts, least_texts, texts_needed

__all__ = [
    "Certificate",
    "Counts",
    "bound_drop",
    "check_texts",
    "find_certified",
    "least_texts",
    "p_value",
    "texts_needed",
]
