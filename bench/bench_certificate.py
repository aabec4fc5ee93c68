"""Simulates how often certificates pass: ours beside others from the literature, on the same draws.

    python bench/bench_certificate.py --out bench/results

Losses are paired: a text is lost (only we err), won (only the original errs) or neither. A row whose true drop is
`max_drop` or more shows false passes, which may not exceed the level; the others show power.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from result_files import describe_machine, slug, write_result
from scipy.special import bdtr
from scipy.stats import beta

from mpcompile.compile.certify import p_value

LEVEL = 0.05


@dataclass(frozen=True)
class Setting:
    """True shares of texts lost and won, and what is tested."""

    num_texts: int
    max_drop: float
    lost: float
    won: float

    @property
    def is_null(self) -> bool:
        """Whether a pass would be a false one."""
        return self.lost - self.won >= self.max_drop - 1e-12

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Differences of the losses, (count, N), each -1, 0 or 1."""
        uniform = random.random((count, self.num_texts), dtype=np.float32)
        return np.where(uniform < self.lost, 1, np.where(uniform < self.lost + self.won, -1, 0)).astype(np.int8)


SETTINGS = (
    Setting(2000, 0.005, 0.005, 0.0), Setting(2000, 0.005, 0.015, 0.010), Setting(2000, 0.005, 0.035, 0.030),
    Setting(2000, 0.010, 0.030, 0.020), Setting(8000, 0.005, 0.025, 0.020),
    Setting(700, 0.005, 0.0005, 0.0005), Setting(2000, 0.005, 0.001, 0.001), Setting(2000, 0.005, 0.005, 0.005),
    Setting(2000, 0.005, 0.010, 0.010), Setting(2000, 0.010, 0.010, 0.010), Setting(4000, 0.005, 0.010, 0.010),
    Setting(8000, 0.005, 0.020, 0.020), Setting(8000, 0.005, 0.010, 0.008),
)  # fmt: skip


def ours(difference: np.ndarray, max_drop: float) -> np.ndarray:
    """`mpcompile.compile.certify.p_value`; draws with the same counts share one evaluation."""
    lost, won = (difference == 1), (difference == -1)
    counts = np.stack([lost.sum(1), won.sum(1)], axis=1)
    passes = {}
    for key in {tuple(row) for row in counts.tolist()}:
        row = int(np.flatnonzero((counts == key).all(1))[0])
        passes[key] = p_value(lost[row], won[row], max_drop, 1.0 - LEVEL) <= LEVEL
    return np.array([passes[tuple(row)] for row in counts.tolist()])


def clopper_pearson(difference: np.ndarray, max_drop: float) -> np.ndarray:
    """Two exact binomial intervals that share the allowed failure."""
    lost, won, count = (difference == 1).sum(1), (difference == -1).sum(1), difference.shape[1]
    above = beta.ppf(1 - LEVEL / 2, lost + 1, count - lost)
    below = np.where(won == 0, 0.0, beta.ppf(LEVEL / 2, np.maximum(won, 1), count - won + 1))
    return above - below <= max_drop


def plug_in_bets(difference: np.ndarray, max_drop: float) -> np.ndarray:
    """Predictable plug-in bets on the mean (Waudby-Smith and Ramdas 2023); depends on the order of the texts."""
    gain, mean_0, count = (1.0 - difference) / 2.0, (1.0 - max_drop) / 2.0, difference.shape[1]
    index = np.arange(1, count + 1)
    mean = (0.5 + np.cumsum(gain, 1)) / (index + 1)
    variance = (0.25 + np.cumsum((gain - mean) ** 2, 1)) / (index + 1)
    before = np.concatenate([np.full((len(gain), 1), 0.25), variance[:, :-1]], axis=1)
    bet = np.minimum(np.sqrt(2.0 * np.log(1.0 / LEVEL) / (count * before)), 0.75 / mean_0)
    return np.cumsum(np.log1p(bet * (gain - mean_0)), 1).max(1) >= -np.log(LEVEL)


def mixed_bets(difference: np.ndarray, max_drop: float) -> np.ndarray:
    """A mixture of constant bets."""
    lost, won = ((difference == sign).sum(1)[:, None] for sign in (1, -1))
    rest = difference.shape[1] - lost - won
    bet = np.linspace(0.01, 0.99, 99) / (1.0 - max_drop)
    wealth = (
        lost * np.log1p(-bet * (1 - max_drop)) + won * np.log1p(bet * (1 + max_drop)) + rest * np.log1p(bet * max_drop)
    )
    return np.logaddexp.reduce(wealth, 1) - np.log(len(bet)) >= -np.log(LEVEL)


def hoeffding_bentkus(difference: np.ndarray, max_drop: float) -> np.ndarray:
    """Bates et al. 2021, on the difference rescaled to [0, 1]."""
    count, mean, mean_0 = difference.shape[1], ((1.0 + difference) / 2.0).mean(1), (1.0 + max_drop) / 2.0
    lower = np.minimum(mean, mean_0)
    divergence = lower * np.log(lower / mean_0) + (1 - lower) * np.log((1 - lower) / (1 - mean_0))
    return np.minimum(np.exp(-count * divergence), np.e * bdtr(np.ceil(count * mean), count, mean_0)) <= LEVEL


TESTS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "ours": ours,
    "plug-in bets": plug_in_bets,
    "mixed bets": mixed_bets,
    "Clopper-Pearson": clopper_pearson,
    "Hoeffding-Bentkus": hoeffding_bentkus,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--smoke", action="store_true", help="a few draws, nothing kept")
    options = parser.parse_args()
    if options.smoke:
        with tempfile.TemporaryDirectory() as folder:
            _bench(Path(folder), 20)
    else:
        _bench(options.out, options.draws)


def _bench(out: Path, draws: int) -> None:
    random = np.random.default_rng(0)
    rows = []
    for setting in SETTINGS:
        difference = setting.draw(draws, random)
        passed = {name: float(test(difference, setting.max_drop).mean()) for name, test in TESTS.items()}
        rows.append({**asdict(setting), "is_null": setting.is_null, "passed": passed})
        print(rows[-1], file=sys.stderr)
    result = {**describe_machine(), "command": " ".join(["python", *sys.argv]), "draws": draws, "rows": rows}
    write_result(out / f"certificate_{slug()}.json", result, format_table(result))


def format_table(result: dict) -> str:
    """A result file as Markdown."""
    lines = [
        f"{result['date']}, commit {result['commit'][:12]}, {result['draws']} draws a row, level {LEVEL:g}", "",
        f"`{result['command']}`", "",
        f"| texts | max_drop | lost | won | {' | '.join(TESTS)} |", "|---" * (4 + len(TESTS)) + "|",
    ]  # fmt: skip
    for row in result["rows"]:
        shares = " | ".join(f"{100 * row['passed'][name]:.1f}%" for name in TESTS)
        kind = " (false passes)" if row["is_null"] else ""
        lines.append(
            f"| {row['num_texts']}{kind} | {row['max_drop']:g} | {row['lost']:.2%} | {row['won']:.2%} | {shares} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
