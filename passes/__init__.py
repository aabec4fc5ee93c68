"""Graph rewrites for Transformer encoders: torch.fx graphs in, torch.fx graphs out.

A new pass is a new file here; the order they run in is one list, in `mpcompile/graph/rewrite.py`.
"""

from passes.canonicalize import Canonicalize
from passes.encoder import EncoderLayer, find_layers
from passes.fuse_attention import FuseAttention
from passes.insert_exit import ExitHead, InsertExit, TruncateAfterExit, find_exits
from passes.lower_precision import LowerPrecision
from passes.pass_base import Pass, PassError, run_passes
from passes.pool_tokens import PoolTokens
from passes.prune_by_threshold import PruneByThreshold
from passes.prune_tokens import PruneTokens
from passes.soften_tokens import SoftenTokens
from passes.spell_out_attention import SpellOutAttention
from passes.split_segments import split_segments
from passes.tap_features import FeatureTap, TapFeatures
from passes.verify import verify

__all__ = [
    "Canonicalize",
    "EncoderLayer",
    "ExitHead",
    "FeatureTap",
    "FuseAttention",
    "InsertExit",
    "LowerPrecision",
    "Pass",
    "PassError",
    "PoolTokens",
    "PruneByThreshold",
    "PruneTokens",
    "SoftenTokens",
    "SpellOutAttention",
    "TapFeatures",
    "TruncateAfterExit",
    "find_exits",
    "find_layers",
    "run_passes",
    "split_segments",
    "verify",
]
