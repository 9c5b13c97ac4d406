# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # 09 · Leaderboard and claims: what the course has shown, and what it has not
#
# Every notebook ended with a table and a list of verdicts. Now they come together: **all methods side by side**, on the
# same faces, by every measure; and **all claims of the papers** that we could test, each with its verdict. Both were made
# by one command each, and both are only numbers with intervals. This notebook is about reading them. Which differences
# are real? Which method would *you* take, and how sure is that? What did not reproduce, and is it the paper's fault? And how
# many of the verdicts may be luck?
#
# **You will learn**
# - to read a leaderboard column by column: what a column says, what it cannot say, and what its floor and ceiling are;
# - how a long run is cut into shards, so that a killed one goes on where it stopped, to the byte;
# - to choose a method for a purpose: the Pareto front, weights, and how stable a first place is;
# - to judge claims: verdicts from intervals, how many images would settle an open one, what many comparisons do to the
#   chance of a false verdict, and to write a claim with its check yourself.
#
# **You need** notebook 02 (the setting, semantic flips, the true counterfactual) and some of 03–07; notebook 08 on the
# measures. Means, variances and the normal distribution. No GPU, no internet connection.
#
# **Time**: the notebook itself runs in about 60 seconds on two idle cores (`fast` mode).
#
# Seven exercises are built in, where you need them. Leave them open and everything still runs. `CFX_MODE=full` reruns more
# faces and methods; there is no separate `paper` mode here (it does the same as `full`).

# %% tags=["parameters"]
MODE = ""

# %%
import math
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from IPython.display import display
from scipy import stats

from cfx_lib.bench import claims, leaderboard, results, scoreboard, shards
from cfx_lib.bench.claims import smaller
from cfx_lib.bench.contestants import Personas, reloaded
from cfx_lib.bench.scoreboard import Settings
from cfx_lib.bench.verdicts import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from cfx_lib.learn import boards, exercise, hint, mode, plots, progress, say, show, solution, widgets  # noqa: F401
from cfx_lib.learn.compare import less, only, stored
from cfx_lib.metrics import Value, measure_peak_memory

MODE = mode(MODE)
# faces, batch and methods that are run again here, and the seconds given to claims that are checked again
LITTLE = (6, 3, ["copy", "truth", "dime", "svce"], 4.0)
MUCH = (16, 8, ["copy", "truth", "pgd", "dime", "svce", "ldce-cls", "time"], 120.0)
FACES, BATCH, AGAIN, PATIENCE = {"fast": LITTLE, "full": MUCH, "paper": MUCH}[MODE]

# %% [markdown]
# ## The idea in one figure
#
# The leaderboard is stored, with the commit, the machine and the date that made it. Every method explained the same faces
# towards the same classes with the same seed. Three **references** took part, which are no methods:
#
# - a **copy** of the input: changes nothing, and costs nothing;
# - **another face** of the wanted class: changes everything;
# - the **true counterfactual**: moves the one factor that is asked about, just as far as this classifier needs.
#
# An explanation lives between the first two. It should convince (up), and change little (left). Where is the third?

# %%
board, kept = scoreboard.load()
values = {row.pop("method"): row for row in board.wide()}  # method -> measure -> Value or None
REFERENCES = [board.labels[name] for name in Personas.references]
METHODS = [name for name in values if name not in REFERENCES and values[name]["error"] is None]
say(
    f"{len(METHODS)} methods and {len(REFERENCES)} references, {board.settings.n} faces, {board.settings.seeds} seed. "
    f"*Stored leaderboard: {kept.origin}.*"
)
assert not board.errors, board.errors
if changed := results.stale(kept):
    say(
        f"It was made with other weights than today's ({len(changed)} files). Again: `{results.command('leaderboard')}`."
    )
plots_of = {name: (values[name]["LPIPS"], values[name]["semantic flip rate"]) for name in values}
boards.tradeoff(
    plots_of,
    xlabel="how different it looks (LPIPS)",
    ylabel="flips that the oracle confirms, %",
    title="Between a copy and a stranger",
    references=REFERENCES,
)

# %% [markdown]
# > **Predict first.** The true counterfactual is the right answer by construction. Why is it not at the top?
#
# Remember notebook 08: the smallest change that flips the classifier stops *right behind* its boundary, and another
# network has its boundary a hair further on. So even here, with the truth at hand, the best answer does not come out on
# top. Keep it in mind for every column below.

# %% [markdown]
# ## 1 · The leaderboard, column by column
#
# | column | asks | better | what it cannot see |
# |:---|:---|:---:|:---|
# | **flips** | does the classifier say the wanted class? | ↑ | adversarial pixels |
# | **confirmed flips** | ... and the oracle, too? | ↑ | an exaggeration; a stranger |
# | **COUT** | does the class turn when the most changed pixels come first? | ↑ | adversarial pixels |
# | **L1 per pixel**, **LPIPS** | how much changed, in grey levels and to a network's eye? | ↓ | *what* changed |
# | **S³**, **FS** | is it still alike, and the same person? | ↑ | glasses, age |
# | **FID**, **sFID** | are the successful ones distributed like the inputs, like *other* inputs? | ↓ | which face was asked about |
# | **edit error** | how far from the true edit, in units of its size? | ↓ | nothing; but a copy scores 1 |
# | **mask overlap** | did the right pixels change? | ↑ | what they became |
# | **collateral changes** | how many other attributes switched? | ↓ | small changes of attributes |
# | **seconds**, **calls**, **FLOPs** | what does one explanation cost? | ↓ | what one pays for training |
#
# The tables follow, one for each property. *References* are in italics.

# %%
TABLES = {
    "Validity": {"flip rate": "flips", "semantic flip rate": "confirmed flips", "mean confidence": "mean confidence", "COUT": "COUT"},
    "Closeness": {"L1 per pixel": "L1 per pixel", "LPIPS": "LPIPS", "S3": "S³", "FS": "FS", "MNAC": "MNAC"},
    "Realism and correlations": {"FID": "FID", "sFID": "sFID", "cross-over FID": "cross-over FID", "CD": "CD"},
    "Truth": {"edit error": "edit error", "mask overlap": "mask overlap", "displacement": "displacement", "collateral changes": "collateral changes"},
    "Cost of one explanation": {"seconds": "seconds", "denoiser calls": "denoiser calls", "classifier calls": "classifier calls", "GFLOPs": "GFLOPs", "peak memory": "peak memory"},
}  # fmt: skip
for title, columns in TABLES.items():
    say(f"**{title}**")
    names = METHODS if title.startswith("Cost") else list(values)
    results.show_table(
        [{"method": f"*{name}*" if name in REFERENCES else name} | values[name] for name in names],
        {"method": "method"} | columns,
    )

# %% [markdown]
# What to know before comparing anything:
#
# - **n differs.** S³, FS, MNAC, FID, sFID and CD count *successful* explanations only, as in the papers. A method that flips few
#   is measured on few, and on the easy ones.
# - **FID with so few images** is biased upwards, the more so the fewer there are: there are fewer images than features, so its
#   covariance has no full rank (the run remarks it, section 4).
# - **CD** takes a correlation that is undefined as 0. A method that switches no attribute at all has only such ones; its CD is that of
#   doing nothing, and its interval has no width.
# - **Seconds** were measured while two workers shared one machine, on batches; **calls** and **FLOPs** do not depend on the
#   machine. FLOPs are those of the first two faces only.
# - **One seed, one classifier, one world**, and presets that *we* tuned on validation faces of this world.
#
# Some of this in numbers:

# %%
fewest = {m: min(METHODS, key=lambda name: values[name][m].n) for m in ("FID", "S3", "collateral changes")}
for measure, name in fewest.items():
    say(f"{measure}: {values[name][measure].n} of {board.settings.n} faces count for {name}.")
for name in METHODS:  # those that flipped are those that FID counts
    assert values[name]["FID"].n == round(values[name]["flip rate"].mean * board.settings.n), name

# %% [markdown]
# ### Floor and ceiling
#
# A leaderboard without references hides its own weaknesses. Each measure puts all rows in order, references too. The
# *place* of each, 1 for the best; blank where a measure is undefined (a copy has no successful explanation to count):

# %%
PLACES = {
    "flip rate": ("validity", "higher"), "semantic flip rate": ("validity", "higher"), "COUT": ("validity", "higher"),
    "L1 per pixel": ("closeness", "lower"), "LPIPS": ("closeness", "lower"), "S3": ("closeness", "higher"), "FS": ("closeness", "higher"), "MNAC": ("closeness", "lower"),
    "FID": ("realism", "lower"), "sFID": ("realism", "lower"), "cross-over FID": ("realism", "lower"), "CD": ("", "lower"),
    "edit error": ("truth", "lower"), "mask overlap": ("truth", "higher"), "collateral changes": ("truth", "lower"),
    "seconds": ("cost", "lower"), "FLOPs": ("cost", "lower"),
}  # fmt: skip
SHORT = {"semantic flip rate": "confirmed flips", "collateral changes": "collateral", "S3": "S³"}


def number(name, measure):
    """The value of a method under a measure, or None."""
    value = values[name][measure]
    return None if value is None or not value.defined else value.mean


place = {
    m: dict(zip(values, boards.placed([number(name, m) for name in values], better)))
    for m, (_, better) in PLACES.items()
}
display(
    boards.heat(
        list(values),
        [SHORT.get(m, m) for m in PLACES],
        [[place[m][name] for m in PLACES] for name in values],
        title="The place of every row under every measure (1 is best)",
        low=1,
        high=len(values),
        dark="low",
        groups=[kind for kind, _ in PLACES.values()],
    )
)
copy, stranger, truth = REFERENCES
best = {
    name: [SHORT.get(m, m) for m in PLACES if place[m][name] is not None and place[m][name] == min(p for p in place[m].values() if p is not None)]
    for name in REFERENCES
}  # fmt: skip
behind = [SHORT.get(m, m) for m in PLACES if place[m][truth] and SHORT.get(m, m) not in best[truth] and place[m][truth] > 2]  # fmt: skip
say(f"First, alone or with others: {copy}: {', '.join(best[copy]) or 'none'}. {stranger.capitalize()}: {', '.join(best[stranger]) or 'none'}. {truth.capitalize()}: {', '.join(best[truth]) or 'none'}.")  # fmt: skip
say(f"The true counterfactual is neither first nor second in: {', '.join(behind) or 'none'}.")

# %% [markdown]
# So the *copy* wins the distances, and *another face* wins flips. A measure that one of them wins is not useless; it is
# **half** a measure, and needs its other half beside it. And the truth as a ceiling holds only for the measures that know
# the truth.
#
# Look at the edit error again: doing nothing scores exactly 1. Which method does better than nothing?

# %%
nothing = values[copy]["edit error"].mean
better_than_nothing = [m for m in METHODS if less(values[m]["edit error"], nothing) == REPRODUCED]
worse_than_nothing = [m for m in METHODS if less(nothing, values[m]["edit error"]) == REPRODUCED]
nearest = min(METHODS, key=lambda name: values[name]["edit error"].mean)
too_far = [m for m in METHODS if less(1.0, values[m]["displacement"]) == REPRODUCED]
assert nothing == 1.0
say(
    f"Edit error below {nothing:g} (interval): {', '.join(better_than_nothing) or 'none'}. Above: {len(worse_than_nothing)} of "
    f"{len(METHODS)} methods. The nearest is {nearest}: {values[nearest]['edit error']}."
)
say(
    f"The *displacement* says why: how far the smile moved, in units of the true move. More than 1 (interval): "
    f"{len(too_far)} of {len(METHODS)} ({'; '.join(too_far)}). They go further than the classifier needs."
)
unmoved = [m for m in METHODS if less(values[m]["displacement"], 1.0) == REPRODUCED]
say(
    f"Less than 1: {'; '.join(unmoved) or 'none'}. They have to flip the classifier by something else than a smile, if at all."
)

# %% [markdown]
# Most published methods *overshoot* the minimal counterfactual: they are built to convince, with a margin. Whether that
# is a fault depends on the question (notebook 08, section 1). It is a property to know.
#
# ### Which differences are differences?
#
# A place is not a difference. The claim "$a$ is smaller than $b$" has one of three verdicts, read off the two intervals
# $[a_-, a_+]$ and $[b_-, b_+]$ alone:
#
# $$ a_+ < b_-:\ \text{reproduced}, \qquad a_- > b_+:\ \text{not reproduced}, \qquad \text{else: inconclusive} \tag{9.1} $$
#
# ### Exercise 09.1 ●○○ (4 min): a verdict from two intervals
#
# Write Eq. 9.1. Each interval is a pair `(low, high)`; return `"reproduced"`, `"not reproduced"` or `"inconclusive"`.
#
# <details><summary>Hint</summary>The means play no part. Compare the upper end of one with the lower end of the other, both ways.</details>


# %% tags=["exercise"]
@exercise("09.1")
def verdict(a, b):
    """The claim a < b; a, b: (low, high) -> "reproduced", "not reproduced" or "inconclusive"."""
    # SOLUTION
    if a[1] < b[0]:
        return "reproduced"
    if a[0] > b[1]:
        return "not reproduced"
    return "inconclusive"
    # END SOLUTION


# %%
def ends(value):
    """The interval of a value, a pair; a number is its own."""
    if isinstance(value, Value):
        return (value.low, value.high) if value.has_interval else None
    return (value, value)


def facing(value, other):
    """The half of a value's interval that faces another number; 0 for a plain number."""
    if not isinstance(value, Value):
        return 0.0
    return value.mean - value.low if other < value.mean else value.high - value.mean


apart = []
for m in [m for m in PLACES if PLACES[m][0] != "cost"]:
    pairs = [(a, b) for k, a in enumerate(METHODS) for b in METHODS[k + 1 :]]
    found = [verdict(ends(values[a][m]), ends(values[b][m])) for a, b in pairs if ends(values[a][m]) and ends(values[b][m])]  # fmt: skip
    decided = sum(v != "inconclusive" for v in found)
    apart.append({"measure": SHORT.get(m, m), "pairs of methods": len(found), "told apart": decided, "share": f"{decided / len(found):.0%}" if found else "–"})  # fmt: skip
apart.sort(key=lambda row: -row["told apart"])
results.show_table(apart)
say(
    f"Best at telling methods apart: {apart[0]['measure']}; worst: {apart[-1]['measure']}. A *share* at the ceiling or a "
    "distance between sets of this size cannot tell much; a measure with a number for each face can."
)

# %% [markdown]
# Intervals that do not overlap are a *careful* rule: the same faces were used for both, and a comparison face by face
# would see more (exercise 09.2). The stored leaderboard has no single faces, so we stay careful.

# %% [markdown]
# ## 2 · The algorithm of a long run
#
# The leaderboard here takes minutes; the same for ImageNet takes days on many GPUs. Something will go wrong in the middle.
# So the work is cut into **shards**: a shard is one method, one seed, and a few images. Its name says all that decides it,
# above all the seed, so it does not matter who makes it, when, or after what. It is written in one step (a file is there
# whole, or not at all), and whoever starts the run again skips what is there:

# %%
show(shards.Run.make, docstring=False)
show(shards.Run.finished, docstring=False)

# %% [markdown]
# Three more precautions, each against a real accident:
#
# - a folder belongs to **one** run: settings, weights, versions, the code itself. A run that differs in anything is refused
#   before it computes; else half of the table would come from yesterday's model;
# - a **lock** keeps a second process out;
# - what is never the same twice (seconds, memory) is kept *beside* the rows and not in them. So the rows can be compared
#   byte for byte.
#
# Let us run a small part of the leaderboard, by the very same code, and press the stop button in the middle. Below,
# `watched` only writes down which shard was made when, and raises `KeyboardInterrupt` after some of them.


# %%
def watched(diary, stop_after=None):
    """Lets `leaderboard.run` write into `diary` which shard it makes when, and stops it after so many."""
    make = leaderboard.make_shard

    def make_shard(settings, shard, **where):
        if len(diary) == stop_after:
            raise KeyboardInterrupt
        began = time.perf_counter()
        found = make(settings, shard, **where)
        diary.append((shard.name, began, time.perf_counter()))
        return found

    return mock.patch.object(leaderboard, "make_shard", make_shard)


few = Settings(n=FACES, batch=BATCH)
world = leaderboard.world_of(few)
planned = [s for name in leaderboard.select(AGAIN, world) for s in leaderboard.shards_of(name, few, world)]
keep_alive = tempfile.TemporaryDirectory()
folder = Path(keep_alive.name) / "run"
first_try, second_try, third_try = [], [], []
try:
    with watched(first_try, stop_after=len(planned) // 2):
        leaderboard.run(AGAIN, few, folder, progress=False)
except KeyboardInterrupt:
    say("Stopped in the middle, as by Ctrl-C.")
files = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (folder / "shards").iterdir()}
with watched(second_try):
    live = leaderboard.run(AGAIN, few, folder, progress=False)
unchanged = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (folder / "shards").iterdir()}
say(
    f"{len(planned)} shards: {len(first_try)} were made before the stop, {len(second_try)} after it; none twice, and the "
    f"{len(files)} files of the first try were not touched."
)
assert files.items() <= unchanged.items()
assert not {name for name, _, _ in first_try} & {name for name, _, _ in second_try}
assert len(first_try) + len(second_try) == len(planned) == len(unchanged)

# %% [markdown]
# ## 3 · The trajectory of a run

# %%
display(
    boards.timeline(
        {"before the stop": first_try, "started again": second_try},
        title="Which shard was made when; at the dashed line the run was stopped",
    )
)
lengths = [ended - began for _, began, ended in first_try + second_try]
say(
    f"A process that is killed loses the shard that it is making, and nothing else: here at most {max(lengths):.1f} s, on average "
    f"half of {sum(lengths) / len(lengths):.1f} s, of {sum(lengths):.0f} s in all."
)

# %% [markdown]
# (`.flops` shards count the operations of the first two faces; the counter is slow, so they look longer than they deserve.)
#
# **The same to the byte?** Now the shards of DiME again, in the *opposite order* and another folder. Whatever is made when, the rows
# must be those of the interrupted run, the bytes of the pixels included.

# %%
written = pq.read_table(folder / "counterfactuals.parquet")
pictured = [s for s in planned if s.what["method"] == "dime" and s.what["kind"] == "images"]
with shards.opened(Path(keep_alive.name) / "backwards", {"what": "DiME's shards"}) as held:
    failures = held.make(pictured[::-1], partial(leaderboard.make_shard, few), progress=False)
    again = held.merged(pictured)
assert not failures and again.equals(written.filter(pc.equal(written["method"], "dime")))
say(
    f"{len(pictured)} shards with {again.num_rows} counterfactuals, made again backwards: equal in all {again.num_columns} columns, pixel for pixel."
)

# %% [markdown]
# This holds on one kind of machine with one number of threads; another processor adds floats in another order, and the
# last digits differ. What the run made, as a slider from input to explanation:

# %%
x, asked_for = world.images


def pictures_of(name):
    """The counterfactuals that the interrupted run wrote for a method, (N,3,64,64)."""
    own = written.filter(pc.equal(written["method"], name))
    return leaderboard.result_of(own, {"seconds": 0.0, "peak_memory": None}, x).x_cf


widgets.wipe(x, pictures_of("dime"), labels=("input", "DiME"))

# %%
plots.image_rows(
    {"input": x[:8]} | {board.labels[name]: pictures_of(name)[:8] for name in AGAIN if name != "copy"},
    title="Explanations of the live part",
)

# %% [markdown]
# ### How large should a shard be?
#
# Small shards lose little when something dies, but each has an overhead $o$: before its work the garbage is collected, so that
# the memory that the work takes can be measured, and after it a file is written, forced to the disk and read again. With $W$
# seconds of work in shards of $s$ seconds and $K$ accidents, each of which costs half a shard,
#
# $$ \text{lost}(s) = \frac{W}{s}\,o + K\,\frac{s}{2}, \qquad s^\ast = \sqrt{2\,W o / K} \tag{9.2} $$
#
# which is Young's rule for checkpoints (Young 1974). The overhead is easy to measure: shards that do nothing.


# %%
def idle(shard):
    """A shard with one row, and no work: a file alone."""
    return pa.table({"row": [shard.what["row"]]}), {}


def idle_measured(shard):
    """The same, with the memory of no work measured, as every shard of the leaderboard does."""
    measure_peak_memory(lambda: None)
    return idle(shard)


def seconds_each(make, count):
    """Seconds of one of so many shards that `make` makes, in a folder of their own."""
    with shards.opened(Path(keep_alive.name) / make.__name__, {"what": make.__name__}) as held:
        began = time.perf_counter()
        held.make([shards.Shard(f"{k:03}", {"row": k}) for k in range(count)], make, progress=False)
        return (time.perf_counter() - began) / count


file, overhead = seconds_each(idle, 40), seconds_each(idle_measured, 6)
work = (
    sum(values[name]["seconds"].mean for name in METHODS) * board.settings.n
)  # of the stored leaderboard, one worker
ideal = math.sqrt(2 * work * overhead)
typical = work / len(METHODS) / (board.settings.n / board.settings.batch)
say(
    f"Overhead of a shard on this machine: {1000 * overhead:.0f} ms, of which the file takes {1000 * file:.1f} ms. The stored leaderboard is {work / 60:.0f} minutes of explaining. "
    f"With one accident a run, Eq. 9.2 wants shards of {ideal:.1f} s; ours, of {board.settings.batch} faces, take {typical:.0f} s on "
    f"average, and lose {overhead * work / typical + typical / 2:.0f} s in place of {ideal:.1f} s: {(overhead * work / typical + typical / 2) / work:.1%} of the work. (And larger batches are faster an image.)"
)

# %% [markdown]
# With `--cluster local:2`, `slurm:8` or `tcp://...` the same shards go to workers through Dask. A worker that dies costs its
# shard, which another makes again (the tests kill one). What two workers bring on one machine with two cores, stored:

# %%
scaling = stored("bench-scaling")
if scaling:
    results.show_table(scaling)
    two = [row for row in scaling if isinstance(row.get("times faster than one worker"), Value)]
    for row in two:
        gain = row["times faster than one worker"]
        say(
            f"{row['run'].capitalize()}: {gain.mean:.2f} times as fast as one, on {row['shards']} shards"
            + (" with the same rows, byte for byte." if row.get("same rows as the others") else ".")
        )

# %% [markdown]
# ## 4 · Does the live part agree with the stored one?
#
# The live faces are the *first* of the stored ones. Single faces are not stored, only means, so what can be checked?
#
# 1. **Exactly**: FLOPs (both count the same two faces), and counts. If $k$ of the live faces flipped, and $K$ of all $N$, then
#    $k \le K$ and $n - k \le N - K$.
# 2. **Within chance**: a mean of $n$ faces out of $N$ differs from the mean of all by chance, but less than that of $n$ *other* faces: they are a part of
#    the whole, so the half-width $h$ of the live interval shrinks by the factor $\sqrt{1 - n/N}$, to nothing for $n=N$. We allow what happens by chance in 1
#    of 1,000 comparisons: with Student's $t$, $h\,\sqrt{1-n/N}\;t_{0.9995}/t_{0.975}$.

# %%
wide = {row["method"]: row for row in live.wide()}
agreement = []
N = board.settings.n
for name in (board.labels[m] for m in AGAIN if m != "copy"):
    for m in ("flip rate", "semantic flip rate", "L1 per pixel", "LPIPS", "COUT", "edit error", "GFLOPs"):
        here, there = wide[name][m], values[name][m]
        if here is None or there is None:
            continue
        if m == "GFLOPs":
            rule, fine = "equal to 5 digits", math.isclose(here.mean, there.mean, rel_tol=1e-4)
        elif here.unit == "%":
            k, K = round(here.mean * here.n), round(there.mean * there.n)
            rule, fine = "counts fit", k <= K and here.n - k <= there.n - K
        else:
            student = stats.t(here.n - 1)
            room = facing(here, there.mean) * math.sqrt(1 - here.n / there.n) * student.ppf(0.9995) / student.ppf(0.975)  # fmt: skip
            room += 1e-5  # the stored means have five digits
            rule, fine = f"within {room:.2g}", abs(here.mean - there.mean) <= room
        agreement.append({"method": name, "measure": SHORT.get(m, m), "live": here, "stored": there, "rule": rule, "agrees": bool(fine)})  # fmt: skip
results.show_table(agreement)
assert all(row["agrees"] for row in agreement), [row for row in agreement if not row["agrees"]]
assert wide[copy]["L1 per pixel"].mean == 0 == values[copy]["L1 per pixel"].mean
say(
    f"All {len(agreement)} comparisons agree. For means this is a weak check with so few faces: it would notice another network or unit, and no small slip. "
    "FLOPs notice whatever changes the work."
)
say(
    "What the live run itself remarks about its metrics:\n\n"
    + "\n".join(f"- {remark}" for remark in scoreboard.remarks(live))
)

# %% [markdown]
# ### In pairs
#
# The live rows still know every face. That allows a sharper comparison of two methods. With scores $a_i$, $b_i$ of the same
# faces, the half-widths of the interval of the difference of the means are, in pairs and as if the faces were others,
#
# $$ h_{\rm paired} = 1.96\,\frac{\mathrm{sd}(a-b)}{\sqrt n}, \qquad h_{\rm unpaired} = 1.96\sqrt{\frac{\mathrm{sd}^2(a)+\mathrm{sd}^2(b)}{n}} \tag{9.3} $$
#
# Where a face that is hard for one method is hard for the other, too (their scores are correlated), the common part cancels in pairs.
# Where it is the other way round, the paired interval is the *wider* one. It is the right one in either case.
#
# ### Exercise 09.2 ●○○ (6 min): in pairs and apart
#
# Write both half-widths of Eq. 9.3, with the standard deviation that divides by $n-1$.
#
# <details><summary>Hint</summary>torch's <code>std()</code> and <code>var()</code> divide by n - 1 already. The order: paired first.</details>


# %% tags=["exercise"]
@exercise("09.2")
def half_widths(a, b):
    """Scores (N,), (N,) of the same images -> (paired, unpaired), two numbers."""
    # SOLUTION
    n = len(a)
    paired = 1.96 * (a - b).std() / n**0.5
    unpaired = 1.96 * ((a.var() + b.var()) / n) ** 0.5
    return float(paired), float(unpaired)
    # END SOLUTION


# %%
pairwise = []
for one, other in (("dime", "svce"), ("dime", "truth"), ("svce", "truth")):
    for m in ("L1 per pixel", "LPIPS", "COUT"):
        a, b = (torch.tensor(wide[board.labels[name]][m].scores) for name in (one, other))
        paired, unpaired = half_widths(a, b)
        pairwise.append({"methods": f"{board.labels[one]} - {board.labels[other]}", "measure": m, "difference": f"{float((a - b).mean()):.3f}", "in pairs": f"± {paired:.3f}",
                         "apart": f"± {unpaired:.3f}", "correlation": f"{float(torch.corrcoef(torch.stack([a, b]))[0, 1]):+.2f}", "faces saved": f"{1 - (paired / unpaired) ** 2:+.0%}"})  # fmt: skip
results.show_table(pairwise)
say(
    f"*Faces saved*: how many fewer faces the paired comparison needs for the same width; negative where the scores are correlated negatively. "
    f"{FACES} faces are few for a correlation: to see how it works, not to conclude from."
)

# %% [markdown]
# ## 5 · Trade-offs
#
# No method is first everywhere. A method is **beaten** if another is at least as good in everything that counts, and better in
# something. Those that nobody beats are the **Pareto front**: with $u_{mk}$ the value of method $m$ in criterion $k$, more is better,
#
# $$ m \in \text{front} \iff \nexists\, m':\ u_{m'k} \ge u_{mk}\ \forall k\ \text{ and }\ \exists k:\ u_{m'k} > u_{mk} \tag{9.4} $$
#
# ### Exercise 09.3 ●●○ (8 min): the Pareto front
#
# Write Eq. 9.4. `u` has a row for each method and a column for each criterion; more is better in all of them. Two equal methods do
# not beat each other.
#
# <details><summary>Hint</summary>Compare all with all: <code>u[:, None]</code> against <code>u[None, :]</code> has the shape (M, M, K); reduce over the last.</details>


# %% tags=["exercise"]
@exercise("09.3")
def pareto_front(u):
    """(M, K), more is better -> (M,) bool: is the method beaten by none?"""
    # SOLUTION
    as_good = (u[None, :] >= u[:, None]).all(2)  # [m, m']: m' is at least as good as m everywhere
    better = (u[None, :] > u[:, None]).any(2)
    return ~(as_good & better).any(1)
    # END SOLUTION


# %%
def front(names, measures):
    """The names on the Pareto front of these measures."""
    sign = {m: 1.0 if PLACES[m][1] == "higher" else -1.0 for m in measures}
    u = torch.tensor([[sign[m] * number(name, m) for m in measures] for name in names])
    return [name for name, on in zip(names, pareto_front(u).tolist()) if on]


LOOKS = [
    ("semantic flip rate", "LPIPS", "Validity against closeness", "flips that the oracle confirms, % (more is better)", "LPIPS (less is better)"),
    ("edit error", "semantic flip rate", "Truth against validity", "edit error (less is better; a copy: 1)", "flips that the oracle confirms, % (more is better)"),
    ("collateral changes", "FID", "Side effects against realism", "other attributes that switched (less is better)", "FID, log axis (less is better)"),
    ("seconds", "edit error", "Cost against truth", "seconds an explanation, log axis (less is better)", "edit error (less is better; a copy: 1)"),
]  # fmt: skip
for across, up, title, xlabel, ylabel in LOOKS:
    display(
        boards.tradeoff(
            {name: (values[name][across], values[name][up]) for name in METHODS},
            xlabel=xlabel,
            ylabel=ylabel,
            title=title,
            front=front(METHODS, (across, up)),
            logx=across == "seconds",
            logy=up == "FID",
        )
    )
CRITERIA = {"validity": "semantic flip rate", "closeness": "LPIPS", "realism": "FID", "truth": "edit error", "side effects": "collateral changes", "cost": "seconds"}  # fmt: skip
overall = front(METHODS, list(CRITERIA.values()))
say(f"On the front of each pair, and of all {len(CRITERIA)} criteria together ({', '.join(CRITERIA)}):")
results.show_table(
    [{"criteria": f"{SHORT.get(a, a)}, {SHORT.get(b, b)}", "front": ", ".join(front(METHODS, (a, b)))} for a, b, *_ in LOOKS]
    + [{"criteria": "all", "front": ", ".join(overall)}]
)  # fmt: skip
say(f"Beaten in everything by another: {', '.join(m for m in METHODS if m not in overall) or 'none'}.")

# %% [markdown]
# Be warned. The front is made of *means*: with other faces another method may be on it. And the more criteria, the fewer are
# beaten: with enough of them everybody is best at something, which is why a paper can always find its table. Side effects and realism
# count successful explanations only, so whoever hardly ever flips looks gentle there.
#
# ## 6 · Which method for which purpose?
#
# The front leaves a choice, and the choice is yours: it depends on what you need the explanation *for*. Give each criterion a weight
# $w_k$. On each criterion the best method gets 1, the worst 0 (cost: on the log axis), and
#
# $$ \mathrm{score}_m = \frac{\sum_k w_k u_{mk}}{\sum_k w_k}, \qquad u_{mk} = \frac{v_{mk} - \mathrm{worst}_k}{\mathrm{best}_k - \mathrm{worst}_k} \tag{9.5} $$
#
# The measured $v_{mk}$ have intervals, so the first place has a probability. We draw every value many times from a bell curve as wide as its
# interval, and count who is first.
#
# ### Exercise 09.4 ●●○ (6 min): how often is each first?
#
# `draws` holds the scores of $M$ methods in $R$ draws, more is better. Return the share of draws in which each method is first. Methods that tie for
# the first place share it.
#
# <details><summary>Hint</summary><code>draws == draws.amax(1, keepdim=True)</code> marks the winners of each draw. Divide each row by its number of winners.</details>


# %% tags=["exercise"]
@exercise("09.4")
def first_share(draws):
    """(R, M) scores -> (M,) shares that sum to 1."""
    # SOLUTION
    winners = (draws == draws.amax(1, keepdim=True)).to(draws.dtype)
    return (winners / winners.sum(1, keepdim=True)).mean(0)
    # END SOLUTION


# %%
def resampled(names, measures, draws=2000, seed=0):
    """Values as they might have come out: (draws, names, measures), from the two halves of each interval; more is better, cost as its logarithm."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty(draws, len(names), len(measures), dtype=torch.float64)
    for k, m in enumerate(measures):
        sign = 1.0 if PLACES[m][1] == "higher" else -1.0
        for j, name in enumerate(names):
            mean, (low, high) = values[name][m].mean, ends(values[name][m])
            z = torch.randn(draws, generator=generator, dtype=torch.float64)
            drawn = mean + torch.where(z > 0, high - mean, mean - low) * z / 1.96
            drawn[0] = mean  # the first draw is what was measured
            out[:, j, k] = sign * (drawn.clamp(min=mean / 10).log() if m == "seconds" else drawn)
    return out


def scored(drawn, weights):
    """Eq. 9.5: (draws, M, K), (K,) -> (draws, M)."""
    worst, best = drawn.amin(1, keepdim=True), drawn.amax(1, keepdim=True)
    return ((drawn - worst) / (best - worst) * weights).sum(2) / weights.sum()


drawn = resampled(METHODS, list(CRITERIA.values()))


def decide(validity, closeness, realism, truth, side_effects, cost):
    """The scores of all methods for these weights, and how often each is first."""
    weights = torch.tensor([validity, closeness, realism, truth, side_effects, cost], dtype=torch.float64)
    if not weights.sum() > 0:
        raise ValueError("all weights are 0: give at least one criterion a weight")
    scores = scored(drawn, weights)
    low, high = scores.quantile(0.025, 0), scores.quantile(0.975, 0)
    shares = first_share(scores)
    return boards.decision(
        {name: (float(s), float(min(lo, s)), float(max(hi, s))) for name, s, lo, hi in zip(METHODS, scores[0], low, high)},
        dict(zip(METHODS, shares.tolist())),
        title="Scores for your weights, and how often each is first",
    )  # fmt: skip


widgets.rerun(
    decide,
    {name.replace(" ", "_"): (0, 5, 1) for name in CRITERIA},
    defaults=dict.fromkeys((name.replace(" ", "_") for name in CRITERIA), 1),
)

# %% [markdown]
# Some readers with different needs (the weights are ours; change them):

# %%
READERS = {
    "an auditor who looks for what really changes the decision": (3, 1, 0, 3, 3, 0),
    "a designer who needs a picture that convinces": (3, 1, 3, 0, 1, 0),
    "a user who asks what would just have been enough": (1, 3, 1, 3, 1, 0),
    "an engineer who explains a million images": (2, 1, 0, 0, 1, 5),
}
FLOOR = 0.8  # of flips that the oracle confirms
fit = [k for k, name in enumerate(METHODS) if values[name]["semantic flip rate"].mean >= FLOOR]
choices = []
for who, weights in READERS.items():
    scores = scored(drawn, torch.tensor(weights, dtype=torch.float64))
    shares = first_share(scores)
    order = scores[0].argsort(descending=True).tolist()
    choices.append(
        {"reader": who, "weights": ", ".join(f"{n} {w}" for n, w in zip(CRITERIA, weights) if w), "first": METHODS[order[0]], "in": f"{float(shares[order[0]]):.0%}", "second": METHODS[order[1]],
         f"first of those with {FLOOR:.0%} confirmed flips": METHODS[next(k for k in order if k in fit)]}
    )  # fmt: skip
results.show_table(choices)
say(
    "*In*: the share of draws in which the first stays first. Whoever sees only the *labels* of a classifier has no choice: TIME alone needs nothing else."
)
unfit = [c for c in choices if c["first"] not in [METHODS[k] for k in fit]]
for c in unfit:
    flips = values[c["first"]]["semantic flip rate"]
    say(f"Look twice at {c['reader']}: {c['first']} is first, and the oracle sees the wanted class on {boards.brief(flips)} of the faces. Weights let a method *buy* one thing with another.")  # fmt: skip

# %% [markdown]
# So weights are for what may be traded. What may not be traded is a **floor**: first strike out who does not reach it (last column), then weigh the rest.
#
# %% [markdown]
# How stable are the *places* behind the first? For the measure of truth, the probability of each place:

# %%
edit = -resampled(METHODS, ["edit error"])[:, :, 0]
ranks = edit.argsort(1).argsort(1)
odds = torch.stack([(ranks == p).double().mean(0) for p in range(len(METHODS))], 1)
order = odds.mul(torch.arange(len(METHODS))).sum(1).argsort().tolist()
display(
    boards.heat(
        [METHODS[k] for k in order],
        [str(p + 1) for p in range(len(METHODS))],
        [[float(v) if v >= 0.005 else None for v in odds[k]] for k in order],
        title="Probability of each place in the edit error",
        text="{:.2f}",
    )
)
sure = [METHODS[k] for k in range(len(METHODS)) if odds[k].max() > 0.95]
say(
    f"A place that is sure (more than 95 %) has: {', '.join(sure) or 'none'}. All methods saw the same faces, and the draws are taken apart for "
    "each; in pairs the order is usually surer than this."
)

# %% [markdown]
# ## 7 · Which measure to trust
#
# Notebook 08 asked which published measure puts methods in the order of the truth, with fewer methods, under several conditions. Here is a second
# look: one condition, and methods that did not take part there (LDCE, TIME, Blended Diffusion). It is **not independent**: the faces, the networks and
# some methods are the same.

# %%
known = {row["metric"]: row for row in only(stored("metrics_agreement"), condition="mean", truth="mean", kind="published") if row.get("rank")}  # fmt: skip
NAMES_08 = {"flip_rate": "flip rate", "confidence": "mean confidence", "cout": "COUT", "l1": "L1", "l1.5": "L1.5", "l2": "L2", "lpips": "LPIPS", "s3": "S3", "fs": "FS", "fva": "FVA",
            "mnac": "MNAC", "cd": "CD", "fid": "FID", "sfid": "sFID", "crossover_fid": "cross-over FID", "im1": "IM1", "im2": "IM2"}  # fmt: skip
HIGHER = ("flip rate", "mean confidence", "COUT", "S3", "FS", "FVA")
TRUTHS = {"edit error": -1.0, "semantic flip rate": 1.0, "collateral changes": -1.0}


def with_truth(m):
    """Kendall's tau-b of a measure's order of the methods with that of each truth, and the mean."""
    sign = 1.0 if m in HIGHER else -1.0
    own = [sign * number(name, m) for name in METHODS]
    each = [
        float(stats.kendalltau(own, [s * number(name, t) for name in METHODS])[0]) for t, s in TRUTHS.items()
    ]
    return each, sum(each) / len(each)


looks = []
for metric, row in sorted(known.items(), key=lambda item: item[1]["rank"]):
    each, mean = with_truth(NAMES_08[metric])
    looks.append({"measure": SHORT.get(NAMES_08[metric], NAMES_08[metric]), "notebook 08: rank": row["rank"], "tau there": row["tau"], "tau here": f"{mean:+.2f}"}
                 | {SHORT.get(t, t): f"{v:+.2f}" for t, v in zip(TRUTHS, each)})  # fmt: skip
if looks:
    results.show_table(looks)
    there, here = ([row["tau"].mean for row in known.values()], [with_truth(NAMES_08[m])[1] for m in known])
    rho, chance_of_rho = stats.spearmanr(there, here)
    top = max(known, key=lambda m: with_truth(NAMES_08[m])[1])
    say(
        f"The two rankings of measures are correlated by {rho:+.2f} (Spearman; p = {chance_of_rho:.3f} if nothing connected them, over {len(known)} measures "
        f"that are themselves related). Best here: {NAMES_08[top]}; best there: {NAMES_08[min(known, key=lambda m: known[m]['rank'])]}."
    )

# %% [markdown]
# The lesson is that of notebook 08: trust no measure alone. Take one that asks *did it flip, and does an independent judge agree*, one that asks *how
# much else changed*, and say both.
#
# ## 8 · Paper against measured: the ledger of claims
#
# A **claim** is a sentence of a paper that can be tested, in our words, with the place where it stands and a check. The check measures, and the verdict
# follows from intervals alone: *reproduced*, *not reproduced*, *inconclusive*, or *needs a GPU*. Here is how the library writes one down and what it
# makes of it:

# %%
show(claims.Claim)
show(claims.line)
kept_claims = claims.load().rows if stored("claims") else []
said = {row["name"]: row for row in kept_claims}
PAPERS = {"dime": "DiME", "ace": "ACE", "dvce": "DVCE", "ldce": "LDCE", "time": "TIME", "hit": "HiT"}


def of_paper(rows, paper):
    """The lines of the claims of one paper."""
    return [row for row in rows if row["name"].split(".")[0] == paper]


by_paper = {label: claims.counts(of_paper(kept_claims, paper)) for paper, label in PAPERS.items()}
if kept_claims:
    counted = claims.counts(kept_claims)
    decidable = counted[REPRODUCED] + counted[NOT_REPRODUCED]
    say(
        f"**{len(kept_claims)} claims**: "
        + ", ".join(f"{n} {v}" for v, n in counted.items())
        + f". Of the {decidable} that could be decided, {counted[REPRODUCED] / max(decidable, 1):.0%} were reproduced. (No interval: claims are no sample of anything. *We* chose them.)"
    )
    display(boards.verdict_bars(by_paper, title="Claims by paper and verdict"))

# %% [markdown]
# ### Every claim, beside what it is compared with
#
# Each line below has a scale of its own (the numbers stand at its right): the measured value with its interval, and the value that it is compared with.
# Where the two do not touch, a claim that one is larger has its verdict (unless it is about single trainings, whose luck is in no interval). Claims of *equality* are reproduced where both are surely close enough to each other. Under each figure the claims in words fold out.


# %%
def folded(summary, rows):
    """A table behind one line that opens it."""
    say(f"<details><summary>{summary}</summary>\n\n{results.value_table(rows)}\n\n</details>")


for paper, label in PAPERS.items():
    rows = of_paper(kept_claims, paper)
    drawn_ones = [row for row in rows if boards.drawable(row)]
    pages = max(1, round(len(drawn_ones) / 24))
    for page in range(pages if drawn_ones else 0):
        part = drawn_ones[page * len(drawn_ones) // pages : (page + 1) * len(drawn_ones) // pages]
        told = f" ({page + 1} of {pages})" if pages > 1 else ""
        display(boards.forest(part, title=f"{label}: measured, and compared with{told}"))
    if rows:
        folded(
            f"{label}: {len(rows)} claims in words",
            [
                {"claim": row["name"].partition(".")[2], "place": row["place"], "says": row["says"], "verdict": row["verdict"], "n": "–" if row["n"] is None else str(row["n"])}
                for row in rows
            ],
        )  # fmt: skip

# %% [markdown]
# ### What did not reproduce, and why that may be
#
# A claim that fails here has failed *here*: with small networks, on rendered faces, with our presets. That is worth knowing, and it is not a refutation of a
# paper on photographs.

# %%
every = {claim.name: claim for claim in claims.every()}
for paper, label in PAPERS.items():
    refuted = only(of_paper(kept_claims, paper), verdict=NOT_REPRODUCED)
    lines = [
        f"- **{row['says'].rstrip('.')}** ({row['place']}). *Measured*: {row['what']}, {boards.brief(row['effect'])} against {boards.brief(row['against'], row['effect'])}. "
        f"*Why*: {every[row['name']].discussion if row['name'] in every else 'the claim is no longer in the ledger.'}"
        for row in refuted
    ]
    if lines:
        say(f"**{label}**\n\n" + "\n".join(lines))
if kept_claims and not only(kept_claims, verdict=NOT_REPRODUCED):
    say("None: every claim that could be decided was reproduced.")

# %% [markdown]
# ### What "inconclusive" means, and what would settle it
#
# *Inconclusive* is not *nearly reproduced*, and not *no difference*. It says: these images cannot tell. How many could? The half-width $h$ of an interval shrinks like
# $1/\sqrt n$. If the true effect is the measured one, at a distance $d$ from the value that it is compared with, then the probability of a verdict reaches $p$ with
#
# $$ n' = n \left( \frac{h}{d} \cdot \frac{1.96 + z_p}{1.96} \right)^2, \qquad z_p = \Phi^{-1}(p) \tag{9.6} $$
#
# Without $z_p$ the interval would *just* touch the compared value, if the new images came out like the old ones; half of the time they come out nearer, and the verdict is
# missed.
#
# ### Exercise 09.5 ●●○ (8 min): how many images?
#
# Write Eq. 9.6, rounded up. An effect equal to the compared value is never told apart: return `math.inf`.
#
# <details><summary>Hint</summary><code>stats.norm.ppf(power)</code> is the quantile z_p. Keep the square outside both factors; <code>math.ceil</code> at the very end.</details>


# %% tags=["exercise"]
@exercise("09.5")
def images_needed(effect, half, against, n, power):
    """An effect with half-width `half` on n images, compared with `against` -> images for a verdict with probability `power`."""
    # SOLUTION
    distance = abs(effect - against)
    if distance == 0:
        return math.inf
    reach = (1.96 + stats.norm.ppf(power)) / 1.96
    return math.ceil(n * (half / distance * reach) ** 2)
    # END SOLUTION


# %%
def halves(row):
    """Effect, half-width (of both sides together), compared value and n of a line whose verdict is that of its intervals; None for others."""
    effect, against = row["effect"], row["against"]
    if (
        not isinstance(effect, Value)
        or against is None
        or not row["n"]
        or not ends(effect)
        or not ends(against)
    ):
        return None
    if (row["verdict"] == INCONCLUSIVE) != (less(effect, against) == INCONCLUSIVE):
        return None  # a claim of equality, or about single trainings
    both = facing(effect, float(against)) + facing(against, effect.mean)
    return effect.mean, both, float(against), row["n"]


open_ones = only(kept_claims, verdict=INCONCLUSIVE)
needed = [(images_needed(*halves(row), 0.8), row) for row in open_ones if halves(row)]
settle = [
    {"claim": row["name"], "says": row["says"], "measured": row["effect"], "against": boards.brief(row["against"], row["effect"]), "images": row["n"],
     "needed (80 %)": "never" if math.isinf(n) else f"{n:,}"}
    for n, row in sorted(needed, key=lambda pair: pair[0])
]  # fmt: skip
if settle:
    say("The open claims that are nearest to a verdict:")
    results.show_table(settle[:8])
    folded(f"All {len(settle)}", settle)
    say(
        f"{len(settle)} of {len(open_ones)} open claims have intervals to reckon with; the others are about equality or single trainings, or nothing could be measured. (A claim of equality whose "
        "intervals overlap is in the table, too; its number is that of telling the two apart.) *Images* are whatever was counted: faces, photographs, runs."
    )
# does Eq. 9.6 keep its promise? Draw the mean of so many images often, and see how often its interval misses the compared value
n_more = images_needed(0.3, 0.4, 0.0, 64, 0.8)
spread = 0.4 / 1.96 * math.sqrt(64 / n_more)
means = 0.3 + spread * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
reached = float(((means - 1.96 * spread) > 0).float().mean())
say(
    f"For example: an effect of 0.3 with a half-width of 0.4 on 64 images needs {n_more}; of {len(means):,} simulated studies of that size {reached:.1%} reach a verdict."
)
assert abs(reached - 0.8) < 0.02

# %% [markdown]
# ### Checked again, here and now
#
# The kept ledger was made by `python -m cfx_lib.bench claims --mode full`. Now the checks run again: those that read a table compare its intervals anew, all of them; those that
# *compute* something really compute it, a paper after the other, for as long as our patience lasts. Every verdict must come out as it was kept.

# %%
still = [claim for claim in every.values() if claim.name in said]
evidence = claims.Evidence("full")
reads = [claim for claim in still if "computed" not in said[claim.name]["source"]]
queues = [[c for c in still if c.paper == paper and c not in reads] for paper in PAPERS]
computes = [queue[k] for k in range(max(map(len, queues))) for queue in queues if k < len(queue)]
recheck = [claims.line(claim, evidence) for claim in reads]
until = time.perf_counter() + PATIENCE
for claim in computes:
    if time.perf_counter() < until:
        recheck.append(claims.line(claim, evidence))
for row in recheck:
    assert "error" not in row, row
    assert row["verdict"] == said[row["name"]]["verdict"], (row["name"], row["verdict"])
if recheck:
    say(
        f"{len(recheck)} of {len(kept_claims)} claims were checked again in {sum(row['seconds'] for row in recheck):.1f} s: all verdicts as kept. "
        f"{len(recheck) - len(reads)} of the {len(computes)} that compute something were computed here:"
    )
    results.show_table(
        [{"claim": row["name"], "says": row["says"], "measured": boards.brief(row["effect"]), "against": boards.brief(row["against"], row["effect"]), "verdict": row["verdict"],
          "seconds": f"{row['seconds']:.2f}"} for row in recheck[len(reads) :]]
    )  # fmt: skip

# %% [markdown]
# ### A claim of your own
#
# ### Exercise 09.6 ●●○ (10 min): write a check
#
# The claim: *on `smile-old`, attribute `smile`, DiME with its mask makes fewer collateral changes than DiME without.* The stored table `metrics_methods` has a row for each
# `classifier`, `attribute` and `method` (`"DiME, masked"` and `"DiME"`), with the column `collateral_changes`. Ask `evidence.value(table, column, **row)` for both values and return
# the finding of `smaller(what, a, b)`, the claim a < b. No threshold, no mean: the verdict follows from the intervals.
#
# <details><summary>Hint</summary><code>evidence.value("metrics_methods", "collateral_changes", classifier="smile-old", attribute="smile", method="DiME")</code> is the second of the two.</details>


# %% tags=["exercise"]
@exercise("09.6")
def fewer_side_effects(evidence):
    """Evidence -> Finding: are the collateral changes of "DiME, masked" fewer than those of "DiME"?"""
    # SOLUTION
    where = {"classifier": "smile-old", "attribute": "smile"}
    masked, plain = (
        evidence.value("metrics_methods", "collateral_changes", **where, method=method)
        for method in ("DiME, masked", "DiME")
    )
    return smaller("collateral changes with and without the mask", masked, plain)
    # END SOLUTION


# %%
own = claims.Claim(
    "dime.own-mask",
    "this course",
    "DiME with its mask makes fewer collateral changes than DiME without",
    fewer_side_effects,
)
results.show_table([claims.line(own, claims.Evidence("full"))])

# %% [markdown]
# ### How many verdicts are luck?
#
# An interval of 95 % misses the true value in 5 % of cases. So if *no* claim had anything to it, some would still get a verdict: about 1 in 20 of those that compare with a
# number, fewer of those that compare two intervals. With many claims, a few such verdicts are to be expected, and half of them would say *reproduced*.
#
# From an interval we can go back to a probability. With the standard errors $s_a, s_b = h/1.96$ of both sides ($h$: the half that faces the other side),
#
# $$ p = 2\,\Phi\!\left(-\frac{|a-b|}{\sqrt{s_a^2+s_b^2}}\right) \tag{9.7} $$
#
# is how often chance alone would bring them at least so far apart. **Holm's** correction (Holm 1979) keeps the probability of even *one* false verdict among $m$ below $\alpha$,
# however the comparisons depend on each other. Sort the $p$; call the smallest significant if it is at most $\alpha/m$, the next if at most $\alpha/(m-1)$, and so on,
#
# $$ p_{(k)} \le \frac{\alpha}{m-k+1}, \qquad k = 1, 2, \ldots \tag{9.8} $$
#
# and stop for good at the first that is not.
#
# ### Exercise 09.7 ●●● (10 min): Holm's correction
#
# Write Eq. 9.8: which of the $p$ stay significant? The answer is in the order of the input.
#
# <details><summary>Hint</summary><code>p.sort()</code> gives the values and where they were. Once one fails, all larger ones fail: <code>cumprod</code> of the
# comparisons does that. Put the answers back to their places.</details>


# %% tags=["exercise"]
@exercise("09.7")
def holm(p, alpha):
    """(m,) p-values -> (m,) bool: which stay significant, the whole family at level alpha."""
    # SOLUTION
    ordered, where = p.sort()
    m = len(p)
    passed = ordered <= alpha / torch.arange(m, 0, -1)
    kept = torch.zeros(m, dtype=torch.bool)
    kept[where] = passed.long().cumprod(0).bool()
    return kept
    # END SOLUTION


# %%
def luck(row):
    """(p-value of Eq. 9.7, chance of a verdict if there were no difference) of a line that compares intervals; None for others."""
    effect, against = row["effect"], row["against"]
    if halves(row) is None:
        return None
    a, b = facing(effect, float(against)) / 1.96, facing(against, effect.mean) / 1.96
    both = math.hypot(a, b)
    if both == 0:
        return None  # exact
    distance = abs(effect.mean - float(against))
    return tuple(float(2 * stats.norm.cdf(-z / both)) for z in (distance, 1.96 * (a + b)))


family = [(row, *luck(row)) for row in kept_claims if luck(row)]
if family:
    p_values = torch.tensor([p for _, p, _ in family], dtype=torch.float64)
    by_chance = [c for *_, c in family]
    decided = [row["verdict"] in (REPRODUCED, NOT_REPRODUCED) for row, *_ in family]
    stays = holm(p_values, 0.05).tolist()
    at_least_one = 1 - math.prod(1 - c for c in by_chance)
    say(
        f"{len(family)} of {len(kept_claims)} claims compare intervals (the others are exact, about equality or single trainings, or need a GPU). If there were nothing to any of "
        f"them, {sum(by_chance):.1f} verdicts were to be expected by chance, and at least one with a probability of {at_least_one:.1%} (as if they were independent). There are {sum(decided)}."
    )
    fallen = [row for (row, *_), d, s in zip(family, decided, stays) if d and not s]
    say(f"After Holm's correction {sum(d and s for d, s in zip(decided, stays))} of these {sum(decided)} verdicts stay. Take with care:")  # fmt: skip
    if fallen:
        results.show_table(
            [{"claim": row["name"], "says": row["says"], "verdict": row["verdict"], "measured": row["effect"], "against": boards.brief(row["against"], row["effect"]), "p": f"{p:.4f}"}
             for (row, p, _), d, s in zip(family, decided, stays) if d and not s]
        )  # fmt: skip
    else:
        say("None: every verdict is far enough from its limit.")
    against_paper = [s for (row, *_), s in zip(family, stays) if row["verdict"] == NOT_REPRODUCED]
    say(f"Of the {len(against_paper)} verdicts *not reproduced* in the family, {sum(against_paper)} stay.")

# %% [markdown]
# Two cautions about the correction itself. The p-values come from intervals as if they were bell curves, which is rough for shares near 0 % and 100 %. And it corrects for the claims
# that are *in the ledger*; for those that we thought of and left out, nothing can.
#
# ## 9 · What a faster setting costs
#
# Half precision (`bf16`) and compiling are there to make explanations faster. Whether they do depends on the processor, the batch and the number of cores, and both change the pictures.
# Speed is only worth reporting together with what it changes:

# %%
precision = stored("bench-precision")
if precision:
    results.show_table(precision)
    gains = [
        (f"{row['method']}, {row['setting']}", None, row["times faster"])
        for row in precision
        if isinstance(row.get("times faster"), Value) and row["setting"] != precision[0]["setting"]
    ]
    if gains:
        display(plots.interval_bars(gains, xlabel=f"times as fast as {precision[0]['setting']}", title="What a setting buys", measured="stored"))  # fmt: skip
        quicker = sum(less(1.0, gain) == REPRODUCED for _, _, gain in gains)
        slower = sum(less(gain, 1.0) == REPRODUCED for _, _, gain in gains)
        say(
            f"Of {len(gains)} settings {quicker} are surely faster than {precision[0]['setting']} here and {slower} surely slower."
        )
    changed = [row for row in precision if isinstance(row.get("largest difference"), float)]
    worst = max(changed, key=lambda row: row["largest difference"], default=None)
    if worst:
        say(
            f"The largest change of a pixel: {worst['largest difference']:.2g} on a scale from -1 to 1, {worst['method']} with {worst['setting']}."
        )

# %% [markdown]
# ## 10 · What the released code does differently
#
# Two people who evaluate the same method seldom get the same number, because of choices like these:
#
# - **Who is counted.** The papers take FID, FS, FVA, MNAC and CD over successful explanations, and diversity over all. Tables seldom say it. We do the same, and print $n$.
# - **Which FID.** *sFID* is the split FID in these papers, the spatial one elsewhere. Plain FID rewards a copy, since inputs and outputs are the same faces.
# - **The last batch of COUT** counts in full in the released code, so the area may exceed 1 (notebook 08).
# - **ACE's distance is a sum over the batch** in the released code, and its classification loss a mean: so an explanation depends on the *others in its batch*. Cut the same run into other
#   shards, and every picture changes. Here both are per image, but for rounding.
# - **Noise.** The released samplers draw the noise of a whole batch at once from one global generator. Which noise an image gets then depends on its place, on the batch, and on what
#   ran before. Here each image has its own generator, named by the seed and the image.
# - **DVCE and LDCE** scale the guidance by another norm than in their papers, and DVCE returns the last *unguided* estimate; **TIME** shipped with an inversion that was one level off.
#   The library takes the papers' versions, and has the others as `released/...` presets.
#
# The one that matters most for a run in shards: does an explanation depend on its batch? DiME on some faces, in a batch of their own, against the same faces in batches of the size above:


# %%
def batch_gap(method):
    """How far the explanations of four faces in one batch are from those in batches of `BATCH`, each pixel of each face."""

    def explained(rows):
        return method.explain(*(part[rows] for part in world.images), seed=few.seed, progress=False).x_cf

    with shards.torch_threads(1):
        apart = torch.cat([explained(slice(k, k + BATCH)) for k in range(0, 5, BATCH)])
        return (explained(slice(1, 5)) - apart[1:5]).abs()


shipped = world.load("dime")
gaps = {"bf16": batch_gap(shipped), "fp32": batch_gap(reloaded(shipped, dtype="fp32"))}
largest = {name: float(gap.max()) for name, gap in gaps.items()}
say(
    f"The same noise, the same steps; a batch of 4 in place of {BATCH}. The largest change of a pixel: {largest['bf16']:.1e} on a scale from -1 to 1, the mean: {float(gaps['bf16'].mean()):.1e}. "
    f"That is with our denoiser in half precision (bf16); in full precision (fp32) the largest is {largest['fp32']:.1e}. "
    + (
        "What depends on the precision is rounding: how sums are cut depends on the size of the batch, and many steps enlarge it. That is why the batch is part of a run's identity."
        if largest["fp32"] < largest["bf16"]
        else "These two sizes make no difference that comes from the precision."
    )
)  # fmt: skip
fids = [[number(name, m) for name in METHODS] for m in ("FID", "sFID", "cross-over FID")]
say(
    f"And the FIDs: they order the {len(METHODS)} methods differently (Kendall's tau of FID with sFID {stats.kendalltau(fids[0], fids[1])[0]:+.2f}, with the cross-over FID "
    f"{stats.kendalltau(fids[0], fids[2])[0]:+.2f}). 'The best FID' is not one title but three."
)

# %% [markdown]
# ## 11 · How a leaderboard fails
#
# **Whoever may choose the weights afterwards can crown many.** Take random weights, and see who is first:

# %%
generator = torch.Generator().manual_seed(0)
random_weights = -torch.rand(5000, len(CRITERIA), generator=generator, dtype=torch.float64).log()
random_weights /= random_weights.sum(1, keepdim=True)  # evenly over all possible weights
u = drawn[0]
u = (u - u.amin(0)) / (u.amax(0) - u.amin(0))
crowned = first_share(random_weights @ u.T)
results.show_table(
    [{"method": METHODS[k], "first for ... of all weights": f"{float(crowned[k]):.1%}"} for k in crowned.argsort(descending=True).tolist() if crowned[k] > 0]
)  # fmt: skip
say(
    f"{int((crowned > 0).sum())} of {len(METHODS)} methods are first for some weights. Most often: {METHODS[int(crowned.argmax())]}, on whose pictures the oracle sees the wanted class in "
    f"{boards.brief(values[METHODS[int(crowned.argmax())]]['semantic flip rate'])} of the cases. Choose the weights, and the floors, *before* you see the table."
)

# %% [markdown]
# **The order of two depends on a third.** Eq. 9.5 measures everybody against the best and the worst that take part. Take one method out, and the rest may change places among themselves. For equal weights:

# %%
equal = torch.ones(len(CRITERIA), dtype=torch.float64)
whole = scored(drawn[:1], equal)[0]
swaps = []
for out in range(len(METHODS)):
    rest = [k for k in range(len(METHODS)) if k != out]
    part = scored(drawn[:1, rest], equal)[0]
    swapped = [
        f"{METHODS[a]} / {METHODS[b]}"
        for i, a in enumerate(rest)
        for j, b in enumerate(rest)
        if i < j and (whole[a] - whole[b]) * (part[i] - part[j]) < 0
    ]
    if swapped:
        swaps.append({"without": METHODS[out], "pairs that change places": len(swapped), "which": "; ".join(swapped[:4]) + ("; ..." if len(swapped) > 4 else "")})  # fmt: skip
results.show_table(swaps) if swaps else say("Here no pair changes places, whoever is left out.")

# %% [markdown]
# **Another classifier, another order.** The leaderboard explains one classifier, trained with noise. The contest of notebook 08 has the same methods on its `brittle` twin, too:

# %%
contest = only(stored("metrics_methods"), kind="method", attribute="smile")
shared = sorted({row["method"] for row in contest})
moves = []
for metric, label in (("edit_error", "edit error"), ("semantic_flip_rate", "confirmed flips"), ("collateral_changes", "collateral changes"), ("lpips", "LPIPS")):  # fmt: skip
    two = [
        {row["method"]: row[metric] for row in only(contest, classifier=c)} for c in ("smile-old", "brittle")
    ]
    both = [m for m in shared if all(t.get(m) is not None and t[m].defined for t in two)]
    if len(both) > 2:
        tau = float(stats.kendalltau(*([t[m].mean for m in both] for t in two))[0])
        lead = [(min if metric != "semantic_flip_rate" else max)(both, key=lambda m: t[m].mean) for t in two]
        moves.append({"measure": label, "methods": len(both), "Kendall's tau of the two orders": f"{tau:+.2f}", "first on smile-old": lead[0], "first on brittle": lead[1]})  # fmt: skip
if moves:
    results.show_table(moves)

# %% [markdown]
# What to keep from all this:
#
# - **Report the references.** A copy and a stranger cost nothing, and show what each column is worth.
# - **Intervals, then places.** Many neighbours on the board cannot be told apart.
# - **Say your weights, and say them first.**
# - **A verdict is about a setting.** It holds for this world, these networks, these presets. The code runs on yours as well: notebook 10.
# - **Inconclusive is an answer.** It comes with a number of images that would be enough.
#
# ## 12 · Exercises
#
# The seven built-in ones:

# %%
progress("09")

# %% [markdown]
# Open ones, without a check:
#
# - **A ●○○** Run the live part with another seed (`Settings(seed=1)`) in a folder of its own. Which measures move more than their intervals?
# - **B ●○○** Try to continue your run with `Settings(n=10)` in the same folder. Who stops you, and what does the message say?
# - **C ●●○** Replace the best-to-worst scale of Eq. 9.5 by the references: 0 for the copy or the stranger, whichever is worse, and 1 for the true counterfactual. Do pairs still change places
#   when a method leaves?
# - **D ●●○** Control the *share* of false verdicts in place of the probability of any (Benjamini and Hochberg 1995). How many more stay?
# - **E ●●●** Draw *faces* in place of values: the folder of a run of yours has every counterfactual (`counterfactuals.parquet`). Bootstrap the faces, all methods on the same ones, and make the
#   picture of the places again. Is the order surer than above?
# - **F ●●●** Find a claim in one of the papers that the ledger does not have, write it with its check, and run it.
#
# ## References
#
# 1. G. Jeanneret. *Towards Explainable and Interpretable Deep Neural Networks*, PhD thesis, 2024 (DiME ch. 3, ACE ch. 4, TIME ch. 5, HiT ch. 6).
# 2. M. Augustin, V. Boreiko, F. Croce, M. Hein. *Diffusion Visual Counterfactual Explanations* (DVCE). NeurIPS 2022.
# 3. K. Farid et al. *Latent Diffusion Counterfactual Explanations* (LDCE). 2023.
# 4. J. W. Young. *A First Order Approximation to the Optimum Checkpoint Interval*. Communications of the ACM 1974 (Eq. 9.2).
# 5. S. Holm. *A Simple Sequentially Rejective Multiple Test Procedure*. Scandinavian Journal of Statistics 1979 (Eq. 9.8).
# 6. Y. Benjamini, Y. Hochberg. *Controlling the False Discovery Rate*. Journal of the Royal Statistical Society B 1995.
# 7. N. Schenker, J. Gentleman. *On Judging the Significance of Differences by Examining the Overlap Between Confidence Intervals*. The American Statistician 2001 (why Eq. 9.1 is careful).
# 8. H. Goldstein, D. Spiegelhalter. *League Tables and Their Limitations*. Journal of the Royal Statistical Society A 1996 (the uncertainty of places).
# 9. M. Rocklin. *Dask: Parallel Computation with Blocked Algorithms and Task Scheduling*. SciPy 2015.
