# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # 08 · Metrics: how to judge an explanation, and how to fool the judge
#
# A paper says: *our counterfactuals have a lower FID*. Is that good news? The lowest FID of all belongs to a method that
# returns the input unchanged. Every measure in use has such a weakness, because each measures something that is *near* to
# what we want, and not the thing itself. This notebook takes all the measures of the three papers apart, one by one:
# **one small experiment in which the measure is right, and one in which it is fooled.** Since our faces are rendered from
# known factors, we always know which is which. At the end the measures themselves are judged: which of them puts methods
# into the order that the truth puts them into?
#
# **You will learn**
# - what each published measure of a counterfactual computes, to the formula, and through which network it looks;
# - for nearly all of them a picture that wins without explaining anything;
# - to write seven of them yourself: COUT, face similarity, the Fréchet distance, split FID, the correlation difference,
#   the edit error, a test for planted shortcuts, and, eighth, the measure that compares measures;
# - what a world with known factors allows beyond them, and what it does not;
# - to read a table of results: with intervals, at equal numbers of images, and with suspicion.
#
# **You need** notebooks 02 and 03 (semantic flips, the oracle, the true counterfactual; DVCE of notebook 04 takes part in
# the contest), means, variances and correlations. No GPU, no internet connection.
#
# **Time**: the notebook itself runs in at most 90 seconds on two idle cores (`fast` mode).
#
# Eight exercises are built in, where you need them. Leave them open and everything still runs. `CFX_MODE=full` uses more
# faces; there is no separate `paper` mode here (it does the same as `full`).

# %% tags=["parameters"]
MODE = ""

# %%
import itertools
import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from scipy import stats

from cfx_lib import PGD, metrics, zoo
from cfx_lib.bench import conditions, dime_study, results
from cfx_lib.learn import exercise, hint, mode, plots, progress, say, show, solution, widgets  # noqa: F401
from cfx_lib.learn.compare import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    Ledger,
    less,
    near,
    only,
    stored,
    value,
)
from cfx_lib.learn.measure import chance, verdicts
from cfx_lib.learn.plots import amplified
from cfx_lib.methods.gradients import class_gradient
from cfx_lib.metrics import frechet
from cfx_lib.types import Step
from cfx_lib.worlds import personas

warnings.filterwarnings("ignore", message="IProgress not found")
MODE = mode(MODE)
# faces in the line-up, in the experiments with rendered edits, in the sets of FID, and explained by every method at the end
N, MANY, SET, FACES = {"fast": (24, 64, 250, 3), "full": (64, 200, 500, 8), "paper": (64, 200, 500, 8)}[MODE]
alone = {"progress": False}
claim = Ledger()  # keeps one verdict after the other for the table at the end, and says it
board = {}  # measure -> (the values of the suspects, +1 if more is better or -1); for section 14


# %% [markdown]
# ## The cast
#
# The measures of the literature look through networks, and a number without the name of its network means nothing. The
# published ones were trained on photographs and on another world's faces. Ours were trained on personas, and take the
# same place in the same formulas:
#
# | what it is asked | papers | here |
# |:---|:---|:---|
# | who is it? (FS, FVA) | ResNet-50 on VGGFace2 | `personas/identity`: the same person with another expression, age or eyewear is near |
# | what is alike, without any label? (S³) | SimSiam on ImageNet | `personas/simsiam`, trained on unlabelled faces |
# | how different does it look? (LPIPS) | AlexNet, calibrated on human judgements | `personas/perceptual`, calibrated on pairs whose order is known |
# | how are the features distributed? (FID) | Inception on ImageNet | the last features of `personas/perceptual` |
# | which attributes does it show? (MNAC, CD) | VGGFace2 fine-tuned on CelebA | the `oracle` of notebook 02 |
# | does it look like its class? (IM1, IM2) | an autoencoder a class | `personas/autoencoders` |
#
# So the *formulas* here are the papers', the *numbers* cannot be compared with theirs, and the claims can. Every number
# is a `Value`: a mean, an interval of 95 % in brackets, the number of images behind it, and the network's name.

# %%
nets = {
    n: zoo.load(f"personas/{n}", channels_last=True)
    for n in ("brittle", "smile-old", "smile-shortcut", "oracle")
}
brittle, fair, biased, oracle = (net.for_attribute("smile") for net in nets.values())
identity, simsiam, trunk, autoencoders = (
    zoo.load(f"personas/{n}") for n in ("identity", "simsiam", "perceptual", "autoencoders")
)
perceptual = metrics.lpips_distance(trunk)

x, factors = dime_study.faces("test", "smile", N)  # smiling, frowning, smiling, ... none of them ambiguous
target = 1 - brittle.predict(x)
example = metrics.flip_rate(oracle.predict(x) != target)
say(f"A `Value`: the oracle agrees with the classifier on the inputs for {example}.")

# %% [markdown]
# ## The idea in one figure
#
# **The line-up.** The `brittle` classifier is asked about each face, and we want the other answer. Six suspects claim to
# explain it. None of them is a method from the literature; we made them ourselves, and know what each is worth:
#
# 1. **the truth**: the smallest move of the real `smile` factor at which this classifier changes its mind;
# 2. **overdone**: the same factor, moved to the end of its range;
# 3. **repainted**: the truth, with the background painted in another colour;
# 4. **pixels**: an adversarial attack on this classifier (PGD, Eq. 2.1);
# 5. **somebody else**: a real face of the wanted class, picked at random;
# 6. **a copy**: the input, returned as it is.
#
# The first is the answer. The second is an honest exaggeration. The other four are a waste of the reader's time. Yet by
# one published measure after another it is one of the four that wins.
#
# > **Predict first.** Flip rate, mean confidence, $\ell_1$, face similarity, number of attributes changed: who of
# > the six wins each? (Section 14 has the answers.)

# %%
GREEN = torch.tensor([0.1, 0.45, 0.3]).view(1, 3, 1, 1) * 2 - 1


def repaint(images, like, colour=GREEN):
    """`images` with another colour where `like` shows the plain background, the colour of its corner, and at its rim."""
    background = (like - like[:, :, :1, :1]).abs().sum(1, keepdim=True) < 0.02
    background = F.max_pool2d(background.float(), 3, stride=1, padding=1) > 0
    return torch.where(background & ((images - like).abs().sum(1, keepdim=True) < 0.02), colour, images)


def moved(some_factors, smile):
    """The same faces with another value of the smile factor (a number, or one a face)."""
    return personas.render(personas.intervene(some_factors, smile=smile))


x_true, factors_true, found = personas.true_counterfactual(factors, "smile", brittle, target)
attack = PGD(brittle, iterations=20).explain(x, target, **alone)
strangers = dime_study.faces("test", "smile", 2 * N)[0][N:].unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
line_up = {
    "the truth": x_true,
    "overdone": moved(factors, torch.where(target == 1, 1.0, -1.0).double().numpy()),
    "repainted": repaint(x_true, x),
    "pixels": attack.x_cf,
    "somebody else": strangers,
    "a copy": x.clone(),
}
k = slice(0, 6)
plots.image_rows(
    {"input": x[k]} | {who: images[k] for who, images in line_up.items()},
    titles={
        who: verdicts(brittle, images[k], target[k], oracle)
        for who, images in {"input": x, **line_up}.items()
    },
    title="The line-up; C: the brittle classifier's P(wanted), oracle: does it see the wanted class?",
)

# %% [markdown]
# ## 1 · Validity: did the answer change?
#
# The first question is whether the classifier changed its mind. With $C$ the classifier, $y_i$ the wanted class and
# $x^{\rm CF}_i$ the explanation, the **flip rate** (LDCE, Eq. 14; thesis, Eqs. 2.6 and B.1) and the **mean confidence**
# (DVCE, Table 1) are
#
# $$ \mathrm{FR} = \frac1N\sum_{i=1}^N \mathbb 1\big[C(x^{\rm CF}_i) = y_i\big] \tag{8.1} $$
# $$ \mathrm{MC} = \frac1N\sum_{i=1}^N P\big(y_i \,|\, x^{\rm CF}_i\big) \tag{8.2} $$
#
# **Right**: they tell an explanation from a copy of the input. **Fooled**: by pixels. The *semantic* flip rate of
# notebook 02 asks an independent network as well.

# %%
flips = {who: brittle.predict(images) == target for who, images in line_up.items()}
agrees = {who: oracle.predict(images) == target for who, images in line_up.items()}
with torch.no_grad():
    logits = {who: brittle(images) for who, images in line_up.items()}
validity_rows = [
    {
        "suspect": who,
        "flip_rate": metrics.flip_rate(flips[who]),
        "semantic": metrics.flip_rate(flips[who] & agrees[who]),
        "confidence": metrics.mean_confidence(logits[who], target),
    }
    for who in line_up
]
VALIDITY = {"flip_rate": "flip rate", "semantic": "semantic flip rate", "confidence": "mean confidence"}
results.show_table(validity_rows, {"suspect": "suspect"} | VALIDITY)
for key, name in VALIDITY.items():
    board[name] = ({r["suspect"]: r[key] for r in validity_rows}, +1)


def of(metric, who):
    """The value of one suspect under a measure that was entered on the board."""
    return board[metric][0][who]


claim(
    "The flip rate believes adversarial pixels (it counts more than 80 % of them)",
    "this course",
    less(0.8, of("flip rate", "pixels")),
)
claim(
    "The semantic flip rate tells them from the truth",
    "this course",
    less(of("semantic flip rate", "pixels"), of("semantic flip rate", "the truth")),
)
claim(
    "The mean confidence prefers adversarial pixels to the true minimal counterfactual",
    "this course",
    less(of("mean confidence", "the truth"), of("mean confidence", "pixels")),
)
claim(
    "The semantic flip rate prefers the exaggeration to the true minimal counterfactual",
    "this course",
    less(of("semantic flip rate", "the truth"), of("semantic flip rate", "overdone")),
)

# %% [markdown]
# The last two deserve a pause. A counterfactual is to change *as little as possible*; so the perfect one stops right
# behind the decision boundary. There the classifier is less sure than further on (a little less if it jumps, as the
# brittle one does; hardly sure at all if it turns gradually, section 3), and a judge whose own boundary lies a
# hair further on does not see it yet. A measure that wants confidence, the classifier's or the oracle's, wants something
# else. Which of the two a user needs is a matter of taste ("what would just have been enough?" or "show me a clear
# case"); that the two pull in opposite directions is not.
#
# And *somebody else*? A stranger of the right class convinces both networks. The semantic flip rate guards against
# pixels, not against answering another question.

# %% [markdown]
# ## 2 · The algorithm of COUT
#
# COUT (Khorram and Fuxin 2022) asks more: is the change *where the decision is made*, and nowhere else? It turns $x$ into
# $x^{\rm CF}$ gradually, **the most changed pixels first**, and watches the classifier. The order comes from a mask, the
# change summed over the channels and brought to $[0,1]$ by $\delta$ (LDCE, App. D):
#
# $$ m = \delta\big(\textstyle\sum_c |x_c - x^{\rm CF}_c|\big) \tag{8.3} $$
#
# Let $x^{(0)}=x$, $x^{(t)}$ the image after $t$ batches of pixels, $x^{(T)}=x^{\rm CF}$. The area under the probability
# of a class (LDCE, Eq. 16) and the difference of the areas of the wanted and of the factual class (LDCE, Eq. 15) are
#
# $$ \mathrm{AUPC}(y) = \frac1T \sum_{t=0}^{T-1} \frac{f_y(x^{(t)}) + f_y(x^{(t+1)})}{2} \tag{8.4} $$
# $$ \mathrm{COUT} = \mathrm{AUPC}(y^{\rm CF}) - \mathrm{AUPC}(y^{\rm F}) \in [-1, 1] \tag{8.5} $$
#
# The factor $1/T$ takes all batches as equally large. They are, if the number of pixels is a multiple of the batch; if
# not, the last batch is smaller, and $1/T$ has to become the *width* of each step as a share of the pixels.

# %% [markdown]
# ### Exercise 08.1 ●●○ (8 min): the area of COUT
#
# Write Eqs. 8.4 and 8.5 for steps of any width. `fraction` holds the share of the pixels that has been switched at each
# point, from 0 to 1; `p_source` and `p_target` the probabilities of both classes there. Return one score an image.
#
# <details><summary>Hint</summary>The difference of two areas is the area of the difference. Trapezoids: mean of both ends times the
# width of this very step.</details>


# %% tags=["exercise"]
@exercise("08.1")
def cout_score(fraction, p_source, p_target):
    """(P,), (N,P), (N,P) -> (N,) in [-1, 1]."""
    # SOLUTION
    gain = p_target - p_source
    width = fraction[1:] - fraction[:-1]
    return ((gain[:, 1:] + gain[:, :-1]) / 2 * width).sum(1)
    # END SOLUTION


# %% [markdown]
# **Right**: two edits, both of which flip the classifier (here the noise-augmented `smile-old`, which does not mind the
# background). *Sparse* moves the mouth alone; *diffuse* moves the same mouth and paints the background, which changes
# more than the mouth does, so that its pixels come first.

# %%
few = slice(0, 8)
clear = torch.where(target == 1, 0.7, -0.7).double().numpy()
wanted = 1 - fair.predict(x)
sparse = moved(factors, clear)
edits = {"sparse": sparse, "diffuse": repaint(sparse, x)}
curves = {
    name: metrics.transition_curves(x[few], images[few], wanted[few], fair) for name, images in edits.items()
}
scores = {name: cout_score(c.fraction, c.source, c.target) for name, c in curves.items()}
for name, c in curves.items():
    library = metrics.cout(x[few], edits[name][few], wanted[few], fair)
    assert abs(float(scores[name].mean()) - library.mean) < 1e-6, name  # your areas and the library's
    assert torch.allclose(scores[name], c.scores.to(scores[name]), atol=1e-6), name
display(
    plots.image_rows(
        {"input": x[:6]} | {name: images[:6] for name, images in edits.items()},
        titles={name: verdicts(fair, images[:6], wanted[:6], oracle) for name, images in edits.items()},
        title="The same new mouth, twice",
    )
)
display(
    plots.curve(
        {
            f"P({kind} class), {name}": (c.fraction, getattr(c, which).mean(0))
            for name, c in curves.items()
            for kind, which in (("wanted", "target"), ("factual", "source"))
        },
        xlabel="share of the pixels that is switched, the most changed first",
        ylabel="probability",
        title="The transition from x to its counterfactual, mean of the faces",
        markers=False,
    )
)
cout_rows = [
    {
        "edit": name,
        "flip_rate": metrics.flip_rate(fair.predict(images[few]) == wanted[few]),
        "cout": metrics.average(scores[name]),
        "l1": metrics.lp_norm(x[few], images[few], per_pixel=True, unit_range=True),
    }
    for name, images in edits.items()
]
COUT = {"edit": "edit", "flip_rate": "flip rate", "cout": "COUT", "l1": "mean change (l1)"}
results.show_table(cout_rows, COUT)
claim(
    "COUT is higher for the sparse edit than for the diffuse one, although both flip",
    "LDCE, App. D",
    less(cout_rows[1]["cout"], cout_rows[0]["cout"]),
)

# %% [markdown]
# This is what the library runs. Points at which nothing is left to insert are not asked again: an edit that leaves most
# of the face alone costs a fraction of the calls.

# %%
show(metrics.transition_curves, docstring=False)
show(metrics.TransitionCurves.scores, docstring=False)
asked = {name: c.asked / len(x[few]) for name, c in curves.items()}
say(
    f"Calls of the classifier for one face: {asked['sparse']:.0f} for the sparse edit, {asked['diffuse']:.0f} for the "
    f"diffuse one, of {len(curves['sparse'].fraction)} points."
)

# %% [markdown]
# ## 3 · The trajectory of a transition
#
# Watch one face on its way. Left (in the strip: above) the pixels that were inserted so far, right (below) the image that
# the classifier sees, with its P(wanted). First the diffuse edit.
#
# > **Predict first.** Where in the strip will the probability jump?


# %%
def transition_steps(one, one_cf, one_target, classifier, batch, until=None):
    """The transition of one face (C,H,W), `batch` pixels a step, as recorded steps: pixels inserted, image, P(wanted)."""
    change = (one - one_cf).abs().sum(0).flatten()
    place = change.argsort(descending=True, stable=True).argsort()  # of each pixel in the order of insertion
    until = until or len(change)
    counts = [*range(0, until, batch), until]
    inside = torch.stack([(place < n).view(1, *one.shape[1:]) for n in counts])  # (P,1,H,W)
    images = torch.where(inside, one_cf, one)
    with torch.no_grad():
        p = classifier(images).softmax(1)[:, one_target]
    grey = torch.where(inside & (change > 0).view(1, 1, *one.shape[1:]), one_cf, torch.zeros(1))
    return [Step(i, n, grey[i : i + 1], images[i : i + 1], p[i : i + 1]) for i, n in enumerate(counts)]


steps = transition_steps(x[0], edits["diffuse"][0], int(wanted[0]), fair, batch=81)
widgets.trajectory(steps, image=0, labels=("inserted", "image"), counter="pixels")

# %% [markdown]
# Then the sparse one, in much smaller steps, up to the last pixel that it changes at all.

# %%
touched = int(((x - edits["sparse"])[0].abs().sum(0) > 0).sum())
plots.trajectory_strip(
    transition_steps(x[0], edits["sparse"][0], int(wanted[0]), fair, batch=-(-touched // 7), until=touched),
    labels=("inserted", "image"),
    counter="pixels",
    title=f"The sparse edit: {touched} of {x.shape[-1] * x.shape[-2]} pixels",
)

# %% [markdown]
# **Fooled**, in two ways. First, *a few strong pixels*: take the pixels with the largest gradients of the brittle
# classifier, about as many as a mouth has, and let PGD change those alone, as far as it likes. Second, *by confidence*:
# of a sparse edit nearly the whole way is spent at its end, so its COUT is about $P(y) - (1 - P(y)) = 2P(y) - 1$,
# whatever it shows.
#
# > **Predict first.** The noise-augmented classifier changes its mind gradually, the brittle one at once. For which of
# > them will the true *minimal* counterfactual get the lower COUT?

# %%
gradient = class_gradient(brittle, x, target, loss="logit")[0].abs().sum(1)
SPECKS = 100
weakest = gradient.flatten(1).topk(SPECKS, dim=1).values[:, -1].view(-1, 1, 1)
free = (gradient >= weakest)[:, None].float()
specks = PGD(brittle, eps=255.0, step_size=64.0, iterations=8, mask=free).explain(x, target, **alone)
k = slice(0, 6)
display(
    plots.image_rows(
        {"input": x[k], f"{SPECKS} specks": specks.x_cf[k]},
        titles={f"{SPECKS} specks": verdicts(brittle, specks.x_cf[k], target[k], oracle)},
        title=f"{SPECKS} of {x.shape[-1] * x.shape[-2]} pixels, changed as far as the attack likes",
    )
)
fair_true, _, fair_found = personas.true_counterfactual(factors[few], "smile", fair, wanted[few])
contest = [
    ("brittle", brittle, target, specks.flipped, {"the truth": x_true, f"{SPECKS} specks": specks.x_cf}),
    (
        "smile-old",
        fair,
        wanted[few],
        fair_found,
        {"the truth": fair_true, "overdone": line_up["overdone"][few]},
    ),
]
fooled, fooled_rows = {}, []
for name, clf, y, where, suspects in contest:
    for who, images in suspects.items():
        n = len(images)
        fooled[name, who] = metrics.cout(x[:n], images, y, clf, where=where)
        fooled_rows.append(
            {
                "explanation": f"{who} ({name})",
                "cout": fooled[name, who],
                "confidence": metrics.average(2 * chance(clf, images, y)[where] - 1),
                "semantic": metrics.flip_rate((clf.predict(images) == y) & (oracle.predict(images) == y)),
            }
        )
results.show_table(
    fooled_rows,
    {"explanation": "explanation", "cout": "COUT", "confidence": "2 P - 1", "semantic": "semantic flip rate"},
)
say(
    f"(Brittle classifier: the {int(specks.flipped.sum())} of {N} faces that the specks flip. The semantic flip rate "
    f"is over all faces. smile-old: {len(x[few])} faces.)"
)
claim(
    f"On the faces that they flip, {SPECKS} adversarial specks get a higher COUT than the true counterfactual",
    "this course",
    less(fooled["brittle", "the truth"], fooled["brittle", f"{SPECKS} specks"]),
)
claim(
    "COUT prefers the exaggeration to the true minimal counterfactual (smile-old)",
    "this course",
    less(fooled["smile-old", "the truth"], fooled["smile-old", "overdone"]),
)

# %% [markdown]
# So COUT is confidence, less a fine for changing pixels that the classifier does not need. It sees change in the wrong
# place, which no flip rate can; it cannot see whether the right place shows anything. Compare it only between methods
# that stop at similar confidences.

# %% [markdown]
# ## 4 · Closeness in pixels
#
# An explanation should change as little as possible. The plainest measure adds up the changes of the pixels (LDCE, Eqs.
# 18 and 19):
#
# $$ L_p = \frac1N\sum_{i=1}^N \Big(\sum_{c,h,w} |x_{i,chw} - x^{\rm CF}_{i,chw}|^p\Big)^{1/p} \tag{8.6} $$
#
# LDCE adds a warning: $L_p$ norms "can be confounded by unimportant, high-frequency image details". Its decoder fills in
# such details anew, and the norm charges them to the explanation. We can test that: take three changes of **exactly the
# same $L_2$**:
# - **a new mouth**: the smile factor moved over to the other side, nothing else;
# - **a shift**: the whole face moved sideways by a fraction of a pixel, which hardly anybody sees;
# - **noise**: every pixel a little brighter or darker.
#
# > **Predict first.** Same $L_2$. Which has the largest $L_1$? Which would you call the smallest change?

# %%
faces, facts = dime_study.faces("test", "smile", MANY)
to = (1 - oracle.predict(faces)).long()
mouth = moved(facts, -facts["smile"])  # as strong as before, the other way round
side = torch.from_numpy(facts["smile"]).sign().numpy()
gentle = moved(facts, -0.25 * side)  # just over to the other side
size = metrics.lp_distance(faces, gentle, p=2).float().view(-1, 1, 1, 1)
one_pixel = faces.roll(1, dims=3)
one_pixel[..., 0] = faces[..., 0]
whole = metrics.lp_distance(faces, one_pixel, p=2).float().view(-1, 1, 1, 1)
shift = faces + (one_pixel - faces) * (size / whole).clamp(max=1)  # between two pixels: linear interpolation
noise = torch.randn(faces.shape, generator=torch.Generator().manual_seed(0))
noise = noise * size / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
noise = faces + torch.where((faces + noise).abs() > 1, -noise, noise)  # in range, of the same length
changes = {"a new mouth": gentle, "a shift": shift, "noise": noise}
k = slice(0, 5)
rows, captions = {"input": faces[k]}, {}
for name, images in changes.items():
    rows |= {name: images[k], f"its change\n({name})": amplified(images - faces)[k]}
    captions[name] = [f"L2 = {v:.2f}" for v in metrics.lp_distance(faces, images, p=2)[k]]
plots.image_rows(rows, titles=captions, title="Three changes of the same length")

# %%
inner = (size <= whole).flatten()  # only for these a shift of at most one pixel is long enough
blind = {"where": inner}
pixel_rows = [
    {
        "change": name,
        "l2": metrics.lp_norm(faces, images, p=2, **blind),
        "l1": metrics.lp_norm(faces, images, p=1, **blind),
        "factor": metrics.displacement(
            faces, images, oracle=nets["oracle"], factor="smile", target=to, **blind
        ),
    }
    for name, images in changes.items()
]
PIXELS = {"l2": "L2", "l1": "L1", "factor": "smile moved (oracle)"}
results.show_table(pixel_rows, {"change": "change"} | PIXELS)
say(
    f"(Faces for which the three lengths can be made equal: {int(inner.sum())} of {len(faces)}. *Smile moved*: by how "
    "much the oracle sees the factor move towards the other class, on a scale from -1 to 1.)"
)
full_shift = metrics.lp_norm(faces, one_pixel, p=2)
new_mouth = metrics.lp_norm(faces, mouth, p=2)
say(
    f"A shift by one **whole** pixel: L2 = {full_shift}; a smile turned into a frown of the same strength, or back: "
    f"{new_mouth}."
)
claim(
    "A shift by one pixel is farther away in L2 than a smile turned into a frown",
    "this course",
    less(new_mouth, full_shift),
)
claim(
    "At equal L2, noise that shows nothing is farther away in L1 than a new mouth",
    "this course, after LDCE, App. D",
    less(pixel_rows[0]["l1"], pixel_rows[2]["l1"]),
)

# %% [markdown]
# **Right**: $L_p$ is 0 for the copy and grows with the strength of one and the same edit. **Fooled**: it knows nothing of
# shapes. Which $p$ you choose decides whether a method that redraws everything a little, or one that redraws a mouth
# wholly, comes out as closer.
#
# **And a trap that all measures share.** The thesis counts FID, FVA and MNAC over the *successful* explanations alone
# (Sect. 3.4.3). That is sensible, since a copy would win otherwise. But then it pays to answer only where answering is
# easy. With $L_1$:

# %%
strength = metrics.lp_distance(x, x_true, p=1)
easy = found & (strength <= strength[found].median())
cherries = torch.where(easy.view(-1, 1, 1, 1), x_true, x)
selective = [
    {
        "explainer": who,
        "flip_rate": metrics.flip_rate(brittle.predict(images) == target),
        "l1": metrics.lp_norm(x, images, p=1, where=brittle.predict(images) == target),
    }
    for who, images in (
        ("the truth for every face", x_true),
        ("the truth for the easier half, a copy for the others", cherries),
    )
]
results.show_table(
    selective, {"explainer": "explainer", "flip_rate": "flip rate", "l1": "L1 of the successful"}
)
say(
    f"The second explainer says less and looks {1 - selective[1]['l1'].mean / selective[0]['l1'].mean:.0%} closer. "
    "Read no measure of the successful without the flip rate beside it, and compare two methods on the faces that "
    "*both* flip."
)
board["L1"] = ({who: metrics.lp_norm(x, images, p=1) for who, images in line_up.items()}, -1)
board["L2"] = ({who: metrics.lp_norm(x, images, p=2) for who, images in line_up.items()}, -1)

# %% [markdown]
# ## 5 · Closeness in the eyes of a network
#
# If pixels know nothing of shapes, let a network compare. **LPIPS** (Zhang et al. 2018) compares feature maps $\hat f^l$
# of several layers, of unit length in the channels, with a weight $w^l_c \ge 0$ for each channel:
#
# $$ \mathrm{LPIPS}(x, x') = \sum_l \frac{1}{H_lW_l}\sum_{h,w}\sum_c w^l_c\,\big(\hat f^l_{chw}(x) - \hat f^l_{chw}(x')\big)^2 \tag{8.7} $$
#
# **Face similarity** (FS; thesis, Eq. B.4) and **SimSiam similarity** (S³; LDCE, Eq. 17) take one vector $e(x)$ an image,
# and the cosine of the angle between two of them; **face verification accuracy** (FVA; thesis, Eq. B.3), the oldest, asks
# whether that cosine exceeds 0.5:
#
# $$ \mathrm{FS} = \frac1N\sum_i \cos\big(e(x_i), e(x^{\rm CF}_i)\big) \tag{8.8} $$
# $$ \mathrm{FVA} = \frac1N\sum_i \mathbb 1\big[\cos\big(e(x_i), e(x^{\rm CF}_i)\big) > 0.5\big] \tag{8.9} $$
#
# S³ is Eq. 8.8 with the embedding of a network that was trained on images without any label (SimSiam), so it can be had
# for any data. More is closer for all but LPIPS.

# %% [markdown]
# ### Exercise 08.2 ●○○ (5 min): FS and FVA
#
# Write Eqs. 8.8 and 8.9 from the embeddings of the inputs and of the explanations. Return two numbers, FS first.
#
# <details><summary>Hint</summary><code>F.cosine_similarity</code>. The threshold is asked of every image, not of the mean.</details>


# %% tags=["exercise"]
@exercise("08.2")
def face_scores(a, b, threshold):
    """Embeddings (N,D) twice -> (FS, FVA)."""
    # SOLUTION
    similarity = F.cosine_similarity(a, b, dim=1)
    return float(similarity.mean()), float((similarity > threshold).float().mean())
    # END SOLUTION


# %%
def seen_by(network, images):
    """What a network makes of images, batch by batch and without gradients."""
    with torch.no_grad():
        return torch.cat([network(part) for part in images.split(64)])


here = {name: seen_by(identity, images) for name, images in {"input": faces, **changes}.items()}
feature_rows = []
for name, images in changes.items():
    mine = face_scores(here["input"], here[name], 0.5)
    row = {
        "change": name,
        "lpips": metrics.lpips(faces, images, network=trunk, where=inner),
        "s3": metrics.s3(faces, images, network=simsiam, where=inner),
        "fs": metrics.fs(faces, images, network=identity, where=inner),
    }
    whole_set = (
        metrics.fs(faces, images, network=identity),
        metrics.fva(faces, images, network=identity),
    )
    assert all(abs(a - b.mean) < 1e-5 for a, b in zip(mine, whole_set)), name  # yours and the library's
    feature_rows.append(row)
FEATURES = {"lpips": "LPIPS", "s3": "S³", "fs": "FS"}
say("The three changes of the same $L_2$ again:")
results.show_table(feature_rows, {"change": "change"} | FEATURES)
for name, other in (("a shift", 1), ("noise", 2)):
    for key, label in FEATURES.items():
        pair = feature_rows[other][key], feature_rows[0][key]
        farther = less(*pair) if key == "lpips" else less(*pair[::-1])
        claim(f"At equal L2, {label} puts a new mouth farther away than {name}", "this course", farther)

# %% [markdown]
# Read these verdicts with the training of the networks in mind, for that decides what counts as near. The trunk of LPIPS
# was calibrated on pairs in which a small shift is nearer than another expression; the identity network was *taught* that
# a smile does not make another person. A feature space is no more than an opinion, well learned.
#
# **Right** for FS: it tells a person from a stranger. **Fooled**: it cannot see what it was trained to ignore. Below,
# three edits of each face (only the mouth; the mouth *with glasses and age on top of it*; dyed hair) and a stranger, on
# the faces that are young and have hair enough to see its colour.

# %%
hair = ~torch.from_numpy(np.isin(facts["hair"], ("bald", "beanie", "buzzcut")))
shows = hair & torch.from_numpy(facts["age"] < 0.4)  # young enough and with hair enough to see its colour
aged_factors = personas.intervene(
    facts,
    smile=-facts["smile"],
    age=0.65,
    eyewear=["eyeglasses" if e == "none" else "none" for e in facts["eyewear"]],
)
dyed = personas.intervene(
    facts, hair_color=["black" if c == "blond" else "blond" for c in facts["hair_color"]]
)
blind_spot = {
    "the mouth": mouth,
    "the mouth, glasses and age": personas.render(aged_factors),
    "hair dyed, mouth as it was": personas.render(dyed),
    "somebody else": faces.roll(2, 0),
}
k = shows.nonzero()[:5, 0]
display(
    plots.image_rows(
        {"input": faces[k]} | {n.replace(", ", ",\n"): i[k] for n, i in blind_spot.items()},
        title="Which of these is the same person?",
    )
)
blind_rows = [
    {
        "edit": name,
        "fs": metrics.fs(faces, images, network=identity, where=shows),
        "fva": metrics.fva(faces, images, network=identity, where=shows),
        "s3": metrics.s3(faces, images, network=simsiam, where=shows),
        "lpips": metrics.lpips(faces, images, network=trunk, where=shows),
        "mnac": metrics.mnac(faces, images, oracle=nets["oracle"], where=shows),
    }
    for name, images in blind_spot.items()
]
results.show_table(
    blind_rows,
    {
        "edit": "edit",
        "fs": "FS",
        "fva": "FVA",
        "s3": "S³",
        "lpips": "LPIPS",
        "mnac": "attributes changed (oracle)",
    },
)
claim(
    "FS tells a person from somebody else",
    "thesis, Sect. 4.4.1",
    less(blind_rows[3]["fs"], blind_rows[1]["fs"]),
)
claim(
    "FS takes glasses and age on top of the mouth for less of a change than other hair alone",
    "this course",
    less(blind_rows[2]["fs"], blind_rows[1]["fs"]),
)
say(
    f"S³ was told nothing about persons, and does not overlook them: {blind_rows[1]['s3'].mean:.2f} with glasses and "
    f"age, {blind_rows[2]['s3'].mean:.2f} with dyed hair. But of the mouth, which is what was asked for, it hardly "
    f"notices anything either ({blind_rows[0]['s3'].mean:.2f})."
)

# %% [markdown]
# ### Why FS replaced FVA
# A threshold is a staircase: far below it and far above it nothing is felt. The thesis finds that FVA "was saturated"
# (Sect. 2.2.2), and drops the threshold (Sect. 4.4.1). To see it happen, we blend each face with somebody else's, little
# by little: explanations are small changes, so it is the beginning that counts.
#
# > **Predict first.** At which share of the stranger will FS begin to fall, and at which will FVA?

# %%
shares = torch.linspace(0, 0.3, 11).tolist()
start, end = here["input"], faces.roll(2, 0)
blends = {w: faces + w * (end - faces) for w in shares}
display(
    plots.image_rows(
        {"blend": torch.stack([b[0] for b in blends.values()])},
        col_labels=[f"{w:.0%}" for w in shares],
        title="Share of the stranger",
    )
)
fs_of, fva_of = (
    [metric(faces, b, network=identity) for b in blends.values()] for metric in (metrics.fs, metrics.fva)
)
display(
    plots.curve(
        {"FS (mean cosine)": (shares, fs_of), "FVA (share above 0.5)": (shares, fva_of)},
        xlabel="share of the stranger",
        ylabel="similarity, or share of faces",
        title="The same embeddings, with and without the threshold",
    )
)
flat = max((w for w, v in zip(shares, fva_of) if v.mean >= 0.95), default=0.0)
at = shares.index(flat)
say(
    f"Up to a share of {flat:.0%} FVA stays at 95 % or more. FS has fallen from {fs_of[0].mean:.2f} to "
    f"{fs_of[at].mean:.2f} by then: of all that, FVA feels nothing."
)
claim(
    "FVA is saturated where FS still tells the difference (FVA 95 % or more, FS clearly lower)",
    "thesis, Sect. 2.2.2",
    less(fs_of[at], fs_of[0]) if at else NOT_REPRODUCED,
)
say(
    f"Two rows of the table above say the same: FVA is {blind_rows[0]['fva'].mean:.0%} for the new mouth and "
    f"{blind_rows[2]['fva'].mean:.0%} for dyed hair, where FS is {blind_rows[0]['fs'].mean:.3f} and "
    f"{blind_rows[2]['fs'].mean:.3f}."
)
for name, metric, direction in (
    ("LPIPS", lambda a, b: metrics.lpips(a, b, network=trunk), -1),
    ("S³", lambda a, b: metrics.s3(a, b, network=simsiam), +1),
    ("FS", lambda a, b: metrics.fs(a, b, network=identity), +1),
    ("FVA", lambda a, b: metrics.fva(a, b, network=identity), +1),
):
    board[name] = ({who: metric(x, images) for who, images in line_up.items()}, direction)

# %% [markdown]
# The line-up under all measures of closeness. Who is nearest, once the copy is out of competition?

# %%
CLOSE = ("L1", "L2", "LPIPS", "S³", "FS", "FVA")
results.show_table([{"suspect": who} | {m: of(m, who) for m in CLOSE} for who in line_up])

# %% [markdown]
# ## 6 · Realism: FID, and why it was split
#
# Is an explanation a picture of this world at all? The **Fréchet inception distance** (Heusel et al. 2017; LDCE, Eq. 22)
# looks at two *sets* of images through a network, describes each set of features by its mean $\mu$ and its covariance
# $\Sigma$, and takes the distance of the two Gaussians:
#
# $$ \mathrm{FID} = \lVert\mu_{\rm F} - \mu_{\rm CF}\rVert_2^2 + \mathrm{Tr}\big(\Sigma_{\rm F} + \Sigma_{\rm CF} - 2\,(\Sigma_{\rm F}\Sigma_{\rm CF})^{1/2}\big) \tag{8.10} $$
#
# The root is that of the matrix product. Its trace is the sum of the roots of the eigenvalues of
# $\Sigma_{\rm F}\Sigma_{\rm CF}$, and these are real and not negative, although the product is not symmetric.

# %% [markdown]
# ### Exercise 08.3 ●●○ (10 min): the Fréchet distance
#
# Write Eq. 8.10. Take care of rounding: with fewer images than features some eigenvalues are 0, and arrive as
# $-10^{-17}$.
#
# <details><summary>Hint</summary><code>torch.linalg.eigvals(cov_a @ cov_b)</code> returns complex numbers: take <code>.real</code>, clamp at 0,
# then the root and the sum.</details>


# %% tags=["exercise"]
@exercise("08.3")
def frechet_distance(mu_a, cov_a, mu_b, cov_b):
    """Means (D,), covariances (D,D), float64 -> the squared distance of the two Gaussians."""
    # SOLUTION
    eigenvalues = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0)
    spread = cov_a.trace() + cov_b.trace() - 2 * eigenvalues.sqrt().sum()
    return (mu_a - mu_b).square().sum() + spread
    # END SOLUTION


# %%
def between(a, b):
    """Fréchet distance of two sets of features (n,D), (m,D)."""
    a, b = a.double(), b.double()
    return float(frechet_distance(a.mean(0), a.T.cov(), b.mean(0), b.T.cov()))


real, real_factors = personas.load("test")
features = seen_by(trunk.embed, real)  # (1000, D)
one, other = features[:500].double(), features[500:].double()
yours, exact = (
    between(one, other),
    metrics.frechet_distance(one.mean(0), one.T.cov(), other.mean(0), other.T.cov()),
)
assert abs(yours - exact) <= 1e-3 * exact, (yours, exact)
say(
    f"Real faces against other real faces, 500 and 500, {features.shape[1]} features: {yours:.4g} by your function, "
    f"{exact:.4g} by the library."
)

# %% [markdown]
# **Right**: FID is meant to be high for pictures that are not of this world, such as noise or a blur (is it here? See
# the intervals and verdicts below). **Fooled**: by doing nothing. The thesis
# (Sect. 2.2.2) and DVCE (Sect. 4.1) say so themselves; DVCE avoids it by crossing classes, the thesis by splitting. Five
# sets of "explanations" for the same faces: an honest edit (the mouth moved to the other side), a copy, the same faces
# *dealt out again at random*, noise, a blur.
#
# > **Predict first.** FID compares sets. What will it say of the faces that were dealt out again?

# %%
some, some_factors = real[:SET], real_factors[:SET]
gen = torch.Generator().manual_seed(1)
sets = {
    "an honest edit": moved(some_factors, -some_factors["smile"]),
    "a copy": some.clone(),
    "dealt out again": some[torch.randperm(SET, generator=gen)],
    "noise": (some + 0.15 * torch.randn(some.shape, generator=gen)).clamp(-1, 1),
    "a blur": F.avg_pool2d(some, 5, stride=1, padding=2, count_include_pad=False),
}
plots.image_rows(
    {"input": some[:6]} | {name: images[:6] for name, images in sets.items()}, title="Five answers"
)

# %% [markdown]
# The **split FID** (sFID; thesis, Sect. 4.4.1) cuts the faces into two halves, $A$ and $B$, at random; it compares the
# counterfactuals of one half with the originals of the *other*, both ways, and averages over ten cuts (the library's
# column below takes three other cuts, so it differs a little from yours):
#
# $$ \mathrm{sFID} = \tfrac12\Big[\mathrm{FID}\big(x_B,\, x^{\rm CF}_A\big) + \mathrm{FID}\big(x_A,\, x^{\rm CF}_B\big)\Big] \tag{8.11} $$
#
# DVCE goes another way (App. E): its *cross-over* FID compares the counterfactuals that left one group of classes with
# the originals of the group that they went to. Here: frowns turned into smiles with real smiles, and the other way round.

# %% [markdown]
# ### Exercise 08.4 ●●○ (8 min): split FID
#
# Write Eq. 8.11 for one cut. Row `i` of `real` and of `fake` are the features of one face and of its counterfactual;
# `order` is a random permutation: its first half is $A$. `distance(a, b)` is a function of two sets of features.
#
# <details><summary>Hint</summary>No counterfactual may meet its own input.</details>


# %% tags=["exercise"]
@exercise("08.4")
def split_fid(real, fake, order, distance):
    """Features (N,D) twice, (N,) long, a function of two sets -> the mean of both ways."""
    # SOLUTION
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    return (distance(real[second], fake[first]) + distance(real[first], fake[second])) / 2
    # END SOLUTION


# %%
some_class = (torch.from_numpy(some_factors["smile"]) > 0).long()
seen = {name: seen_by(trunk.embed, images) for name, images in sets.items()}
orders = [torch.randperm(SET, generator=torch.Generator().manual_seed(s)) for s in range(10)]
realism_rows = [
    {
        "answer": name,
        "mine": between(features[:SET], seen[name]),
        "fid": metrics.fid(some, images, features=trunk),
        "mine_split": sum(split_fid(features[:SET], seen[name], order, between) for order in orders)
        / len(orders),
        "sfid": metrics.sfid(some, images, features=trunk, splits=3),
        "crossover": metrics.crossover_fid(
            some, images, groups=({0}, {1}), source=some_class, target=1 - some_class, features=trunk
        ),
    }
    for name, images in sets.items()
]
results.show_table(
    realism_rows,
    {
        "answer": "answer",
        "mine": "FID, your function",
        "fid": "FID",
        "mine_split": "sFID, your function (10 cuts)",
        "sfid": "sFID, library (3 cuts)",
        "crossover": "cross-over FID",
    },
)
by_answer = {r["answer"]: r for r in realism_rows}
for r in realism_rows:
    assert abs(r["mine"] - r["fid"].mean) <= 1e-3 * max(r["fid"].mean, 1e-2), r
floor = by_answer["a copy"]["sfid"].mean
claim(
    "FID of a copy of the input is 0, better than any explanation",
    "thesis, Sect. 2.2.2",
    near(by_answer["a copy"]["fid"], 0.0, within=1e-3 * floor),
)
claim(
    "FID of an honest edit is above 0: FID prefers the copy",
    "DVCE, Sect. 4.1",
    less(0.0, by_answer["an honest edit"]["fid"]),
)
claim(
    "FID tells a blur from an honest edit",
    "this course",
    less(by_answer["an honest edit"]["fid"], by_answer["a blur"]["fid"]),
)
claim(
    "FID does not notice that every face got somebody else's picture (dealt out again: 0)",
    "this course",
    near(by_answer["dealt out again"]["mine"], 0.0, within=1e-3 * floor),
)
by_cut = {kind: [] for kind in ("the same half", "the other half")}
for order in orders:
    half_a, half_b = order[: SET // 2], order[SET // 2 :]
    edit, copy = seen["an honest edit"], seen["a copy"]
    by_cut["the same half"].append(
        between(features[half_a], edit[half_a]) - between(features[half_a], copy[half_a])
    )
    by_cut["the other half"].append(
        between(features[half_b], edit[half_a]) - between(features[half_b], copy[half_a])
    )
ahead = {kind: metrics.average(torch.tensor(gaps)) for kind, gaps in by_cut.items()}
say(
    "By how much is the copy ahead of the honest edit? Compared with the originals of "
    + "; of ".join(f"{kind}: {gap}" for kind, gap in ahead.items())
    + ". (The same halves, equally many images; the interval is over the cuts.)"
)
claim(
    "Splitting takes the copy's advantage away: its lead over an honest edit is smaller against the other half",
    "thesis, Sect. 4.4.1",
    less(ahead["the other half"], ahead["the same half"]),
)
claim(
    "sFID prefers faces dealt out again to an honest edit",
    "this course",
    less(by_answer["dealt out again"]["sfid"], by_answer["an honest edit"]["sfid"]),
)
claim(
    "sFID tells a blur from an honest edit",
    "this course",
    less(by_answer["an honest edit"]["sfid"], by_answer["a blur"]["sfid"]),
)
claim(
    "Cross-over FID prefers the honest edit to the copy",
    "DVCE, App. E",
    less(by_answer["an honest edit"]["crossover"], by_answer["a copy"]["crossover"]),
)

# %% [markdown]
# Three things to keep. The split takes the prize away from the copy; it does not *punish* the copy. Crossing the classes
# does: a frown that is returned as it is makes a bad smile. And the split is honest only as long as a counterfactual
# depends on *its own* input: the faces that were dealt out again smuggle originals of one half into the other, and have
# a lower sFID than the honest edit. Realism says whether the pictures are pictures of this world. It never says whether
# they explain.
#
# ### FID against the number of images
# Real faces against *other* real faces should have FID 0. They do not: mean and covariance of few images are noisy, and
# every error of theirs adds to the distance.
#
# > **Predict first.** Twice as many images: what happens to the FID of real against real?

# %%
counts = [n for n in (32, 64, 128, 256, 500) if 2 * n <= len(features)]
bias_here = []
for n in counts:
    cuts = [
        torch.randperm(len(features), generator=torch.Generator().manual_seed(s))[: 2 * n] for s in range(4)
    ]
    bias_here.append(sum(between(features[c[:n]], features[c[n:]]) for c in cuts) / len(cuts))
bias_full = stored("metrics_fid")
series = {"FID, this run": (counts, bias_here)}
for key, label in (("fid", "FID, stored"), ("sfid", "sFID, stored")):
    rows = [r for r in bias_full if r.get(key) is not None]
    if rows:
        series[label] = ([r["n"] for r in rows], [r[key] for r in rows])
display(
    plots.curve(
        series,
        xlabel="images in a set",
        ylabel="distance of real to real",
        title="Real faces against other real faces",
    )
)
say(
    f"With {counts[0]} images the FID of real against real is {bias_here[0] / bias_here[-1]:.0f} times that with "
    f"{counts[-1]}. A FID without its number of images says nothing, and two FIDs can be compared at equal numbers "
    "only. (sFID compares *halves*: its number of images is half as large.)"
)
if bias_full:
    ordered = sorted((r for r in bias_full if r.get("fid") is not None), key=lambda r: r["n"])
    claim(
        "FID of real against real falls with the number of images",
        "this course",
        less(ordered[-1]["fid"], ordered[0]["fid"]),
    )
for key, label in (("fid", "FID"), ("sfid", "sFID"), ("crossover", "cross-over FID")):
    board[label] = ({n: r[key] for n, r in by_answer.items()}, -1)

# %% [markdown]
# ## 7 · Realism by reconstruction: IM1 and IM2
#
# An autoencoder that was trained on smiling faces alone redraws a smiling face well and a frowning one badly. **IM1**
# (Van Looveren and Klaise 2019; thesis, Eq. 2.7) compares two such errors, of the autoencoder of the wanted class and of
# that of the old one; **IM2** (thesis, Eq. 2.8) asks whether the autoencoder of the wanted class and one of *all* classes
# agree:
#
# $$ \mathrm{IM1} = \frac{\lVert x^{\rm CF} - \mathrm{AE}_{y}(x^{\rm CF})\rVert_2^2}{\lVert x^{\rm CF} - \mathrm{AE}_{y^{\rm F}}(x^{\rm CF})\rVert_2^2 + \epsilon} \tag{8.12} $$
# $$ \mathrm{IM2} = \frac{\lVert \mathrm{AE}_{y}(x^{\rm CF}) - \mathrm{AE}_{\rm all}(x^{\rm CF})\rVert_2^2}{\lVert x^{\rm CF}\rVert_1 + \epsilon} \tag{8.13} $$
#
# Less is better; below 1, IM1 says that the picture belongs to the wanted class. The thesis lists why the field has given
# both up (Sect. 2.2.2): an autoencoder for every class, which all have to be good; errors in pixels; everything assumed
# to be classified rightly. Here there are two classes, and drawings, so let us see. Three guests join the line-up: a
# blurred copy of the input; the *mean face* of the wanted class, one and the same ghost for everybody; and a copy on dark
# ground, which no autoencoder has ever seen.
#
# > **Predict first.** A copy is what the *old* class's autoencoder draws well, so IM1 should catch it. What does painting
# > its background do to numerator and denominator?

# %%
label = personas.attributes(real_factors)[:, personas.ATTRIBUTES.index("smile")]
ghosts = torch.stack([real[~label].mean(0), real[label].mean(0)])
dark = repaint(x, x, torch.full((1, 3, 1, 1), -0.6))
invited = line_up | {
    "a blurred copy": F.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False),
    "the mean face": ghosts[target],
    "a copy, dark ground": dark,
}
decoders = {"autoencoders": autoencoders, "attribute": "smile", "target": target}
im_of = {
    name: {"im1": metrics.im1(images, source=1 - target, **decoders), "im2": metrics.im2(images, **decoders)}
    for name, images in invited.items()
}


def redrawn(images, classes):
    """What the autoencoders of these classes make of images."""
    with torch.no_grad():
        return autoencoders.reconstruct(images, "smile", classes)


k = slice(0, 5)
display(
    plots.image_rows(
        {
            "the truth": x_true[k],
            "redrawn by the\nwanted class": redrawn(x_true[k], target[k]),
            "redrawn by the\nold class": redrawn(x_true[k], 1 - target[k]),
            "a copy,\ndark ground": dark[k],
            "redrawn by the\nwanted class ": redrawn(dark[k], target[k]),
            "redrawn by the\nold class ": redrawn(dark[k], 1 - target[k]),
        },
        title="What the autoencoders make of it",
    )
)
results.show_table(
    [{"suspect": name, **row} for name, row in im_of.items()],
    {"suspect": "suspect", "im1": "IM1", "im2": "IM2"},
)
for key, name in (("im1", "IM1"), ("im2", "IM2")):
    board[name] = ({who: im_of[who][key] for who in line_up}, -1)
for text, source, key, better, worse in (
    (
        "IM1 puts the truth nearer to the wanted class than a copy",
        "thesis, Eq. 2.7",
        "im1",
        "the truth",
        "a copy",
    ),
    ("IM1 tells adversarial pixels from the truth", "this course", "im1", "the truth", "pixels"),
    ("IM1 prefers a stranger to the truth", "this course", "im1", "somebody else", "the truth"),
    (
        "IM1 takes a copy for better once its background is dark",
        "this course",
        "im1",
        "a copy, dark ground",
        "a copy",
    ),
    ("IM2 tells adversarial pixels from the truth", "this course", "im2", "the truth", "pixels"),
    ("IM2 takes a copy for better once it is blurred", "this course", "im2", "a blurred copy", "a copy"),
):
    claim(text, source, less(im_of[better][key], im_of[worse][key]))

# %% [markdown]
# In this world the two old measures do better than their reputation: they see through adversarial pixels, which FS and S³
# take for the same face. With a thousand classes of photographs nobody has the autoencoders for it. And the ratio is
# fragile: on dark ground *both* autoencoders fail over the whole background, both errors grow, and what the mouth says
# about the class drowns. IM1 moves towards 1, which for a copy is a promotion.

# %% [markdown]
# ## 8 · Attributes: MNAC, and the correlation difference
#
# Did anything change that was not asked for? The **mean number of attributes changed** lets an oracle decide (thesis, Eq.
# B.2; LDCE, Eq. 20), $O_a$ being its decision on attribute $a$:
#
# $$ \mathrm{MNAC} = \frac1N\sum_i \sum_a \mathbb 1\big[O_a(x^{\rm CF}_i) \ne O_a(x_i)\big] \tag{8.14} $$
#
# The thesis objects (Sect. 3.4.5): if the *classifier* has learnt a shortcut, then the shortcut **has** to appear in a
# faithful explanation. MNAC blames the explanation for it. So it asks another question: do attributes change together as
# they *occur* together? With labels $Y_a$ of the population and Pearson's correlation PCC (Eq. 3.10),
#
# $$ c_{qa} = \mathrm{PCC}(Y_q, Y_a) \tag{8.15} $$
# $$ \delta_a(x) = O_a(x^{\rm CF}) - O_a(x), \qquad c^M_{qa} = \mathrm{PCC}(\delta_q, \delta_a) \tag{8.16} $$
# $$ \mathrm{CD}_q = \sum_a \big|c_{qa} - c^M_{qa}\big| \tag{8.17} $$
#
# (Eqs. 3.11 and 3.19 of the thesis.) Why may correlations of *changes* be compared with correlations of *labels*? That is
# Theorem 1: for two independent samples $X, X'$ the changes $\delta_a = Y_a - Y'_a$ satisfy
# $\mathrm{Cov}(\delta_q,\delta_a) = 2\,\mathrm{Cov}(Y_q, Y_a)$, the 2 cancels in the correlation, and both correlations
# are the same.

# %% [markdown]
# ### Exercise 08.5 ●●● (15 min): the correlation difference
#
# Write Eqs. 8.15–8.17. All tensors hold 0 and 1: `labels` (M,A) of the population, `before` and `after` (N,A) of the
# pictures; `query` is the column $q$. An attribute that never changes has no correlation: let it count as 0.
#
# <details><summary>Hint</summary>A helper that gives the correlations of one column with all columns; call it on the labels and on
# <code>after - before</code>.</details>


# %% tags=["exercise"]
@exercise("08.5")
def correlation_gap(labels, before, after, query):
    """(M,A), (N,A), (N,A) of 0 and 1, a column -> CD, a number."""

    # SOLUTION
    def correlations(values):
        centred = values - values.mean(0)
        top = (centred * centred[:, query : query + 1]).sum(0)
        bottom = (centred.square().sum(0) * centred[:, query].square().sum()).sqrt()
        return torch.where(bottom > 0, top / bottom, torch.zeros_like(top))

    return float((correlations(labels) - correlations(after - before)).abs().sum())
    # END SOLUTION


# %% [markdown]
# **Theorem 1 in numbers.** Twenty thousand faces, drawn as factors only; nothing has to be rendered. Each is paired with
# another one at random (the theorem), and with another one *of the other class*: for that is what explanations that all
# flip are.
#
# > **Predict first.** The theorem is about independent pairs. Pairs that always differ in $q$ are not independent. Do
# > their correlations come out larger or smaller?

# %%
SMILE = personas.ATTRIBUTES.index("smile")
population = personas.sample(personas.SPLIT_SIZES["train"], personas.SPLIT_SEEDS["train"])
labels = personas.attributes(population).double()
gen = torch.Generator().manual_seed(0)
partner = labels[torch.randperm(len(labels), generator=gen)]
yes, no = labels[labels[:, SMILE] == 1], labels[labels[:, SMILE] == 0]
pairs = min(len(yes), len(no))
yes, no = (group[torch.randperm(len(group), generator=gen)[:pairs]] for group in (yes, no))
crossed = torch.cat([no, yes]), torch.cat([yes, no])  # every pair once in either direction
at_random = metrics.change_correlations(labels, partner, SMILE)
at_odds = metrics.change_correlations(*crossed, SMILE)
c = metrics.attribute_correlations(labels, SMILE)
rest = [a for a in range(len(c)) if a != SMILE]
order = sorted(rest, key=lambda a: float(c[a]))
grid = torch.linspace(float(c[rest].min()), float(c[rest].max()), 41)
curve = grid * (2 / (1 + grid**2)).sqrt()
display(
    plots.curve(
        {
            "Theorem 1": (grid, grid),
            "pairs at random": (c[order], at_random[order]),
            "pairs of opposite classes": (c[order], at_odds[order]),
            "c (2 / (1 + c²))^½": (grid, curve),
        },
        xlabel="correlation of the labels with smile, c",
        ylabel="correlation of the changes",
        title="One point an attribute",
        figsize=(6.2, 4.2),
    )
)
z = (torch.atanh(at_random[rest]) - torch.atanh(c[rest])).abs() * math.sqrt(
    (len(labels) - 3) / 2
)  # both are sampled
bound = float(stats.norm.ppf(1 - 0.05 / 2 / len(rest)))  # 5 % for all attributes together (Bonferroni)
predicted = c[rest] * (2 / (1 + c[rest] ** 2)).sqrt()
say(
    f"Largest difference between the two correlations over {len(rest)} attributes: "
    f"{float((at_random - c)[rest].abs().max()):.4f}, from pairs at random. In units of its own sampling error: "
    f"{float(z.max()):.1f} (chance alone stays below {bound:.1f}). For pairs of opposite classes the formula drawn as "
    f"a line is right to {float((at_odds[rest] - predicted).abs().max()):.4f}."
)
claim(
    "Correlations of changes are those of labels, for pairs at random (Theorem 1)",
    "thesis, Theorem 1",
    REPRODUCED if float(z.max()) < bound else NOT_REPRODUCED,
)

# %% [markdown]
# The second curve follows from the theorem's own proof. If every pair differs in $q$ and both classes are equally
# frequent, then $\mathrm{Var}(\delta_q)$ is 1 where independent pairs have $\tfrac12$; working the rest out gives
# $c\sqrt{2/(1+c^2)}$. So explanations that *all flip*, and the papers count CD over these alone, have stronger
# correlations than the labels, by up to $\sqrt2$, **even if each of them is a real face of the wanted class**. A perfect
# sampler of that class does not get CD 0. And who gets less, the sampler or the true edit?

# %%
sampler = float((c[rest].abs() * ((2 / (1 + c[rest] ** 2)).sqrt() - 1)).sum())
mouth_only = labels.clone()
mouth_only[:, SMILE] = 1 - labels[:, SMILE]
honest_cd = correlation_gap(labels, labels, mouth_only, SMILE)
dealt = []
for s in range(8):  # other partners of the other class
    mixed = torch.randperm(pairs, generator=torch.Generator().manual_seed(s))
    dealt.append(
        correlation_gap(labels, torch.cat([no, yes]), torch.cat([yes[mixed], no[mixed.argsort()]]), SMILE)
    )
stranger_cd = metrics.average(torch.tensor(dealt))
say(
    f"CD with exact attributes, {2 * pairs} faces, a classifier that looks at nothing but the mouth: "
    f"**{honest_cd:.2f}** for the true edit, which changes the smile and nothing else. **{stranger_cd.mean:.2f}** for "
    f"somebody else of the wanted class (by the formula: {sampler:.2f})."
)
claim(
    "CD prefers a stranger of the wanted class to the true edit", "this course", less(stranger_cd, honest_cd)
)

# %% [markdown]
# **That is CD's weakness in one line**: it compares an explanation with the *data*, not with the *classifier*. A
# classifier that ignores a correlation of the data is explained truthfully by changes without it, and CD asks for it all
# the same. It is at its best where it was made for: when the classifier has learnt the correlation.
#
# And a second one: like FID, CD adds up sampling errors. The same strangers, fewer of them:

# %%
sizes = (32, 100, 320, 1000, 3200, 10000)
strangers_cd, true_cd = [], []
for n in sizes:
    draws = [
        torch.randperm(len(crossed[0]), generator=torch.Generator().manual_seed(s))[:n] for s in range(8)
    ]
    strangers_cd.append(
        sum(correlation_gap(labels, crossed[0][d], crossed[1][d], SMILE) for d in draws) / len(draws)
    )
    some_rows = [d % len(labels) for d in draws]
    true_cd.append(
        sum(correlation_gap(labels, labels[d], mouth_only[d], SMILE) for d in some_rows) / len(draws)
    )
display(
    plots.curve(
        {
            "somebody else of the wanted class": (sizes, strangers_cd),
            "... by the formula, with very many": (sizes, [sampler] * len(sizes)),
            "the true edit": (sizes, true_cd),
        },
        xlabel="explanations",
        ylabel="CD",
        title="CD against the number of explanations",
        logx=True,
    )
)
turn = [n for n, a, b in zip(sizes, strangers_cd, true_cd) if a < b]
say(
    f"With {sizes[0]} explanations the stranger seems worse than the true edit ({strangers_cd[0]:.2f} against "
    f"{true_cd[0]:.2f}); from {turn[0] if turn else 'more than ' + str(sizes[-1])} on it is better. The noise is "
    "charged only to those who change more than the query. Compare CD at equal numbers, and do not trust it at small "
    "ones."
)

# %% [markdown]
# **Right**: where a shortcut was planted. The classifier `smile-shortcut` comes from a world where whoever smiles wears
# glasses and nobody else does. Frowning faces without glasses are to smile, smiling ones with glasses to frown. Three
# ways to explain it, all rendered: *the mouth alone*; *the glasses alone*; *mouth and glasses*.
#
# > **Predict first.** Which of them flip this classifier? Which does MNAC prefer, and which CD, measured against the
# > labels of the biased and of the fair population?

# %%
wears = (real_factors["eyewear"] == "eyeglasses") & (real_factors["smile"] > 0.1)
bare = (
    (real_factors["eyewear"] == "none")
    & (real_factors["closed_eyes"] == "no")
    & (real_factors["smile"] < -0.1)
)
half = min(100, int(wears.sum()), int(bare.sum()))
rows = torch.cat([torch.from_numpy(m.nonzero()[0][:half]) for m in (bare, wears)])
plain, plain_factors = real[rows], real_factors[rows]
goal = torch.cat([torch.ones(half), torch.zeros(half)]).long()
other_glasses = ["none" if e == "eyeglasses" else "eyeglasses" for e in plain_factors["eyewear"]]
edit_mouth, edit_glasses = {"smile": -plain_factors["smile"]}, {"eyewear": other_glasses}
stories = {
    "the mouth": edit_mouth,
    "the glasses": edit_glasses,
    "mouth and glasses": edit_mouth | edit_glasses,
}
told = {name: personas.render(personas.intervene(plain_factors, **do)) for name, do in stories.items()}
shown = torch.cat([torch.arange(3), torch.arange(half, half + 3)])
display(
    plots.image_rows(
        {"input": plain[shown]} | {name: images[shown] for name, images in told.items()},
        titles={
            name: [
                f"shortcut: P={p:.2f}\nfair: P={q:.2f}"
                for p, q in zip(
                    chance(biased, images[shown], goal[shown]), chance(fair, images[shown], goal[shown])
                )
            ]
            for name, images in ({"input": plain} | told).items()
        },
        title="Three explanations of two classifiers; P of the wanted class",
    )
)
populations = {
    "fair": labels.bool(),
    "biased": personas.attributes(
        personas.sample(personas.SPLIT_SIZES["biased"], personas.SPLIT_SEEDS["biased"], "biased")
    ),
}
story_rows = [
    {
        "explanation": name,
        "flips": metrics.flip_rate(biased.predict(images) == goal),
        "fair_flips": metrics.flip_rate(fair.predict(images) == goal),
        "mnac": metrics.mnac(plain, images, oracle=nets["oracle"]),
    }
    | {
        f"cd_{kind}": metrics.correlation_difference(
            plain, images, query="smile", oracle=nets["oracle"], labels=population
        )
        for kind, population in populations.items()
    }
    for name, images in told.items()
]
results.show_table(
    story_rows,
    {
        "explanation": "explanation",
        "flips": "flips the shortcut classifier",
        "fair_flips": "flips the fair one",
        "mnac": "MNAC",
        "cd_biased": "CD, labels of the biased world",
        "cd_fair": "CD, labels of the fair world",
    },
)
by_story = {r["explanation"]: r for r in story_rows}
both, alone_mouth, alone_glasses = (by_story[n] for n in ("mouth and glasses", "the mouth", "the glasses"))
claim(
    "MNAC blames the explanation for the shortcut: revealing it costs more than hiding it",
    "thesis, Sect. 3.4.5",
    less(alone_mouth["mnac"], both["mnac"]),
)
claim(
    "CD against the biased labels prefers the explanation that reveals it",
    "thesis, Sect. 3.4.5",
    less(both["cd_biased"], alone_mouth["cd_biased"]),
)
claim(
    "Against the fair labels it prefers the one that hides it",
    "this course",
    less(alone_mouth["cd_fair"], both["cd_fair"]),
)

# %%
say(
    "The middle row is the shortest true answer for this classifier: the glasses alone flip it in "
    f"{alone_glasses['flips'].mean:.0%} of the cases. CD against the biased labels gives it "
    f"{alone_glasses['cd_biased'].mean:.2f}, where mouth and glasses together have {both['cd_biased'].mean:.2f}: the "
    "*query* attribute, the smile, never changes, so all its correlations are undefined and count as 0. CD assumes "
    "that the classifier at least looks at what it was trained for."
)
board["MNAC"] = (
    {who: metrics.mnac(x, images, oracle=nets["oracle"]) for who, images in line_up.items()},
    -1,
)

# %% [markdown]
# Singla et al. ask the same with one number, *attribute mixing*: plant a second attribute, and count how many
# explanations change it along with the first. The thesis finds that too crude (one attribute, wholly entangled), and it
# needs a planted world, which we have:

# %%
mixing = {
    name: metrics.attribute_mixing(plain, images, planted="eyeglasses", query="smile", oracle=nets["oracle"])
    for name, images in told.items()
}
say(
    "Share of explanations that change smile *and* glasses: "
    + "; ".join(f"{name}: {v}" for name, v in mixing.items())
    + "."
)

# %% [markdown]
# ## 9 · Diversity
#
# There is more than one answer, and a method should find several. $\sigma_L$ (thesis, Eq. 3.20) is the mean distance
# (LPIPS) between the answers $x^i_1,\dots,x^i_n$ of $n=5$ runs:
#
# $$ \sigma_L = \frac1N\sum_{i=1}^N \frac{2}{n(n-1)}\sum_{j<k} \mathrm{LPIPS}\big(x^i_j, x^i_k\big) \tag{8.18} $$
#
# **Right**: five times the same answer has 0. **Fooled**: it does not ask *what* differs. Below, five different ways to
# smile or frown, by the only factor that this classifier needs; the same answer on five backgrounds; and five strangers.

# %%
few = slice(0, 12)
sign = torch.where(target[few] == 1, 1.0, -1.0).double().numpy()
answers = {
    "five strengths of the mouth": [moved(factors[few], sign * s) for s in (0.2, 0.4, 0.6, 0.8, 1.0)],
    "one answer, five backgrounds": [
        repaint(x_true[few], x[few], torch.tensor(colour).view(1, 3, 1, 1))
        for colour in (
            (0.8, 0.86, 0.9),
            (-0.8, -0.1, -0.4),
            (0.6, -0.2, -0.6),
            (-0.5, -0.5, 0.3),
            (0.1, 0.1, -0.7),
        )
    ],
    "five strangers": [strangers.roll(2 * s, 0)[few] for s in range(5)],
}
display(
    plots.image_rows(
        {
            name.replace(", ", ",\n").replace("five strengths", "five\nstrengths"): torch.stack(
                [run[0] for run in runs]
            )
            for name, runs in answers.items()
        },
        title="Five answers to one question",
    )
)
diverse_here = {name: metrics.diversity(runs, distance=perceptual) for name, runs in answers.items()}
results.show_table(
    [{"answers": name, "diversity": v} for name, v in diverse_here.items()],
    {"answers": "answers", "diversity": "σ_L"},
)
claim(
    "σ_L rewards painted backgrounds more than different mouths",
    "this course",
    less(diverse_here["five strengths of the mouth"], diverse_here["one answer, five backgrounds"]),
)

# %% [markdown]
# ## 10 · The truth
#
# None of these measures knows the right answer. We do: the true minimal counterfactual $x^*$ of a face is the face with
# its `smile` factor moved just far enough for *this* classifier. The grades of notebook 02, and what else known factors
# allow:
#
# - **edit error**: how much is wrong, relative to the size of the true edit; 0 is the truth, 1 is as wrong as doing
#   nothing:
#
# $$ \mathrm{EE} = \frac{\sum_i \lVert x^{\rm CF}_i - x^*_i\rVert_1}{\sum_i \lVert x^*_i - x_i\rVert_1} \tag{8.19} $$
#
# - **mask overlap**: the intersection over union of where the edit is ($m$) and where the true edit is ($m^*$), both made
#   as in ACE (notebook 03, Eq. 3.8):
#
# $$ \mathrm{IoU} = \frac1N\sum_i \frac{|m_i\cap m^*_i|}{|m_i\cup m^*_i|} \tag{8.20} $$
#
# - **outside share**: how much of the change lies more than two pixels away from what the truth changes;
#   **displacement**: how far the oracle
#   sees the factor move, relative to the true move;
# - **collateral changes**: attributes that the oracle sees otherwise than the true counterfactual's *exact* factors
#   have them. MNAC with an
#   answer key: what has to change is not counted;
# - **semantic flip rate**, and **shortcut recall** below.

# %% [markdown]
# ### Exercise 08.6 ●○○ (4 min): the edit error
#
# Write Eq. 8.19. Why is it a ratio of sums, and not the mean of the ratios of single faces?
#
# <details><summary>Hint</summary>Some faces stand right at the boundary: their true edit is nearly nothing.</details>


# %% tags=["exercise"]
@exercise("08.6")
def relative_error(x, x_cf, x_true):
    """(N,C,H,W) three times -> a number; 0 for the truth, 1 for a copy of x."""
    # SOLUTION
    wrong = (x_cf - x_true).abs().sum()
    return float(wrong / (x_true - x).abs().sum())
    # END SOLUTION


# %%
true_move = torch.from_numpy(factors_true["smile"] - factors["smile"])
truth_rows = []
for who, images in line_up.items():
    error = metrics.edit_error(x, images, x_true=x_true, where=found)
    assert abs(relative_error(x[found], images[found], x_true[found]) - error.mean) < 1e-3 * max(
        1, error.mean
    ), who
    shared = {"x_true": x_true, "where": found}
    truth_rows.append(
        {
            "suspect": who,
            "edit_error": error,
            "overlap": metrics.mask_overlap(x, images, **shared),
            "outside": metrics.outside_share(x, images, **shared),
            "displacement": metrics.displacement(
                x,
                images,
                oracle=nets["oracle"],
                factor="smile",
                target=target,
                true_move=true_move,
                where=found,
            ),
            "semantic": of("semantic flip rate", who),
            "collateral": metrics.collateral_changes(
                x, images, factors=factors, factor="smile", oracle=nets["oracle"]
            ).changed,
        }
    )
TRUTH = {
    "edit_error": "edit error",
    "overlap": "mask overlap",
    "outside": "outside share",
    "displacement": "displacement",
    "semantic": "semantic flip rate",
    "collateral": "collateral changes",
}
results.show_table(truth_rows, {"suspect": "suspect"} | TRUTH)
board["edit error"] = ({r["suspect"]: r["edit_error"] for r in truth_rows}, -1)
board["mask overlap"] = ({r["suspect"]: r["overlap"] for r in truth_rows}, +1)
board["collateral changes"] = ({r["suspect"]: r["collateral"] for r in truth_rows}, -1)

# %% [markdown]
# **Are these beyond fooling?** No. The *copy* has no collateral changes but the oracle's own errors, and an edit error of
# exactly 1, with which it beats the overdone, who at least answers the question: what goes on past the boundary counts as
# wrong. *Somebody else* flips semantically. The *repainted* one has the right mouth, and an oracle that never saw a green
# background reads nonsense into it. Each of these grades alone can be gamed. **Together** they leave little room: flips
# must be confirmed, edits small, and nothing else may move.
#
# And the truth depends on a choice of ours: it moves *one* factor. A classifier that looks at something else, as the
# shortcut classifier does, has another truth. That one is measured by **shortcut recall**: how often do the explanations
# change the planted attribute, for the classifier with the shortcut, and for the fair one, *on the same faces*?
#
# Pairs of yes and no call for McNemar's test (1947). Faces on which both explanations agree say nothing about a
# difference. Of the $b+c$ others, $b$ changed the attribute for the biased classifier alone, $c$ for the fair one alone;
# if there were no difference, each would be the toss of a coin:
#
# $$ p = \min\Big(1,\ 2\sum_{k=0}^{\min(b,c)} \binom{b+c}{k}\, 2^{-(b+c)}\Big) \tag{8.21} $$

# %% [markdown]
# ### Exercise 08.7 ●●○ (10 min): a test for shortcuts
#
# `biased` and `fair` say for each face whether the explanation of that classifier changed the planted attribute. Return
# the difference of the two shares, and $p$ of Eq. 8.21.
#
# <details><summary>Hint</summary><code>(biased & ~fair).sum()</code> is $b$; <code>math.comb</code>.</details>


# %% tags=["exercise"]
@exercise("08.7")
def shortcut_test(biased, fair):
    """(N,) bool twice, the same faces -> (difference of the shares, p)."""
    # SOLUTION
    more, less = int((biased & ~fair).sum()), int((fair & ~biased).sum())
    tail = sum(math.comb(more + less, k) for k in range(min(more, less) + 1)) / 2 ** (more + less)
    return (more - less) / len(fair), min(1.0, 2 * tail)
    # END SOLUTION


# %%
def ones(b, c, n):
    """n faces: b changed for the biased classifier alone, c for the fair one alone."""
    row = torch.arange(n)
    return row < b, (row >= b) & (row < b + c)


needed = next(n for n in range(1, 40) if shortcut_test(*ones(n, 0, n))[1] < 0.05)
say(
    f"If all faces show it for the biased classifier and none for the fair one, {needed} faces are enough for p < "
    f"0.05. With 9 against 3 of 20 the difference is {shortcut_test(*ones(9, 3, 20))[0]:+.0%}, and p = "
    f"{shortcut_test(*ones(9, 3, 20))[1]:.2f}."
)
hunted = stored("metrics_shortcut")
if hunted:
    say(
        "**Three methods hunt for the glasses**: frowning faces without glasses are to smile, smiling ones with "
        "glasses to frown (DiME from the noisier start of notebook 02). MNAC and CD over the flipped; all other columns, and McNemar's test, over all faces. Who hardly flips the "
        "shortcut classifier cannot tell on it: it may move the smile, as it was asked to, which this classifier does not look at."
    )
    whole_hunt = only(hunted, direction="both")
    results.show_table(
        [{**r, "run": f"{r['method']}, {r['classifier']}"} for r in whole_hunt],
        {
            "run": "explained",
            "flip_rate": "flip rate",
            "smile_changed": "smile changed",
            "glasses_changed": "glasses changed",
            "attribute_mixing": "both changed",
            "mnac": "MNAC",
            "cd_biased": "CD, biased labels",
            "cd_fair": "CD, fair labels",
        },
    )
    caught = [r for r in whole_hunt if r.get("gap") is not None]
    results.show_table(
        caught,
        {
            "method": "method",
            "shortcut": "shortcut recall",
            "fair": "the same for the fair classifier",
            "gap": "difference",
            "only_shortcut": "b",
            "only_fair": "c",
            "p_value": "p (McNemar)",
        },
    )
    for r in caught:
        n, b, c_ = r["gap"].n, r["only_shortcut"], r["only_fair"]
        assert n == 0 or abs(shortcut_test(*ones(b, c_, n))[1] - r["p_value"]) < 1e-6, r[
            "method"
        ]  # your test and the library's
        claim(
            f"{r['method']} tells on the planted shortcut (glasses change as planted, more often than for the fair classifier)",
            "this course",
            less(0.0, r["gap"]),
        )

# %% [markdown]
# ## 11 · Paper against measured
#
# ### Table 4.6: does S³ order like FS?
# S³ was proposed for data without faces, where FS cannot be had. The thesis tests it where both can: *random* pairs of
# faces as a reference, ACE, its pre-explanation (Pre-CE), DiME. Both measures put the four in the same order; therefore,
# it concludes, S³ can stand in for FS.

# %%
ranks = stored("metrics_ranks")
table_46 = only(ranks, part="table 4.6")
for attribute in ("smile", "old"):
    rows = only(table_46, attribute=attribute)
    if rows:
        results.show_table(
            rows,
            {
                "pair": f"pair ({attribute})",
                "paper_fs": "FS, thesis",
                "fs": "FS, here",
                "fs_place": "place",
                "paper_s3": "S³, thesis",
                "s3": "S³, here",
                "s3_place": "place",
            },
        )
        share = rows[0].get("same_order_share")
        say(
            f"Do FS and S³ agree with each other here (not: with the thesis's order): {'yes' if rows[0]['same_order'] else 'no'}; in {share:.0%} of the resampled sets of "
            "faces."
        )
        verdict = REPRODUCED if share >= 0.95 else NOT_REPRODUCED if share <= 0.05 else INCONCLUSIVE
        claim(
            f"S³ and FS put Random, ACE, Pre-CE and DiME in the same order, {attribute}", "Table 4.6", verdict
        )
        for key, label in (("fs", "FS"), ("s3", "S³")):
            display(
                plots.interval_bars(
                    [(r["pair"], r[f"paper_{key}"], r[key]) for r in rows],
                    xlabel=label,
                    title=f"{label}, {attribute} (stored run; other networks than the thesis's)",
                    reference="thesis",
                )
            )
in_line = {m: [board[m][0][who].mean for who in line_up] for m in ("FS", "S³", "LPIPS")}
say(
    "For our six suspects: Kendall's rank correlation of FS and S³ is "
    f"{stats.kendalltau(in_line['FS'], in_line['S³'])[0]:+.2f}, of FS and LPIPS "
    f"{stats.kendalltau(in_line['FS'], in_line['LPIPS'])[0]:+.2f}."
)

# %% [markdown]
# Four points can be in 24 orders, so one agreement is weak evidence, and *Random* is last in any order that makes sense.
# Three methods remain.
#
# ### Saturated FVA, split FID: the thesis's own numbers, and ours
# Two findings of the thesis about its measures can be held against the methods of this course. FVA says little where FS
# says much (Table 4.1). And three times FID and sFID disagree about who is ahead: on Pre-CE and the filtered F-CE, for
# smile and for age (Table 4.5),
# and on DiME and ACE for age on CelebA HQ (Table 4.2, discussed in Sect. 4.4.2). Look at the margins:

# %%
PAPER_45 = {"Pre-CE": (1.87, 4.63), "F-CE": (2.64, 4.61), "ACE": (1.27, 3.97)}  # CelebA, smile: FID, sFID
PAPER_45_AGE = {"Pre-CE": (3.93, 6.71), "F-CE": (4.23, 6.20)}  # CelebA, age: FID, sFID
PAPER_42 = {"DiME": (18.7, 27.8), "ACE, l2": (16.4, 28.2)}  # CelebA HQ, age: FID, sFID
PAPER_41 = {"DiME": (0.983, 0.729), "ACE": (0.999, 0.874)}  # CelebA, smile: FVA, FS
margins = []
for table, where, a, b in (
    (PAPER_45, "smile", "Pre-CE", "F-CE"),
    (PAPER_45_AGE, "age", "Pre-CE", "F-CE"),
    (PAPER_42, "age, HQ", "ACE, l2", "DiME"),
):
    gap = [table[a][n] - table[b][n] for n in (0, 1)]
    share = abs(gap[1]) / table[b][1]
    margins.append(
        f"{a} minus {b} ({where}): FID {gap[0]:+.2f}, sFID {gap[1]:+.2f} (a margin of {share:.1%})"
    )
say("**In the thesis**, " + "; ".join(margins) + ". No interval is given for any.")
contest_full = stored("metrics_methods")
mine = {r["method"]: r for r in only(contest_full, classifier="smile-old", attribute="smile")}
if mine:
    results.show_table(
        [
            {
                "method": m,
                "paper_fva": f"{PAPER_41[m][0]:.1%}",
                "fva": mine[m]["fva"],
                "paper_fs": PAPER_41[m][1],
                "fs": mine[m]["fs"],
            }
            for m in PAPER_41
        ],
        {
            "method": "method",
            "paper_fva": "FVA, thesis",
            "fva": "FVA, here",
            "paper_fs": "FS, thesis",
            "fs": "FS, here",
        },
    )
    claim(
        "FVA of DiME and ACE lie within 5 points of each other",
        "Table 4.1",
        near(mine["DiME"]["fva"], mine["ACE"]["fva"], within=0.05),
    )
    claim("... while FS is clearly higher for ACE", "Table 4.1", less(mine["DiME"]["fs"], mine["ACE"]["fs"]))
    stages = {"Pre-CE": "ACE, pre-explanation", "ACE": "ACE"}
    results.show_table(
        [
            {
                "stage": s,
                "paper_fid": PAPER_45[s][0],
                "fid": mine[m]["fid"],
                "paper_sfid": PAPER_45[s][1],
                "sfid": mine[m]["sfid"],
            }
            for s, m in stages.items()
        ],
        {
            "stage": "stage",
            "paper_fid": "FID, thesis",
            "fid": "FID, here",
            "paper_sfid": "sFID, thesis",
            "sfid": "sFID, here",
        },
    )
    for key, label in (("fid", "FID"), ("sfid", "sFID")):
        claim(
            f"ACE has a lower {label} than its pre-explanation",
            "Table 4.5",
            less(mine["ACE"][key], mine["ACE, pre-explanation"][key]),
        )

# %% [markdown]
# ### LDCE: S³ follows the flip rate, *backwards*
# LDCE counts S³ among the measures of **validity**, although it was made for closeness, because it finds "a high Spearman
# rank correlation of -0.83" between S³ and the flip rate, "using the numbers from Table 2". Here are those numbers: four
# methods on three pairs of ImageNet classes.

# %%
LDCE_TABLE_2 = {  # pair: (S3, FR) of ACE l1, ACE l2, LDCE-cls, LDCE-txt
    "zebra, sorrel": ((0.92, 47.0), (0.90, 81.0), (0.78, 88.0), (0.7113, 81.0)),
    "cheetah, cougar": ((0.91, 77.0), (0.88, 95.0), (0.62, 100.0), (0.59, 98.0)),
    "Egyptian, Persian cat": ((0.85, 85.0), (0.78, 97.0), (0.63, 99.0), (0.61, 99.0)),
}
PAPER_SPEARMAN = -0.83
points = [p for rows in LDCE_TABLE_2.values() for p in rows]
again = float(stats.spearmanr(*zip(*points))[0])
inside = {pair: float(stats.spearmanr(*zip(*rows))[0]) for pair, rows in LDCE_TABLE_2.items()}
left_out = [float(stats.spearmanr(*zip(*(points[:k] + points[k + 1 :])))[0]) for k in range(len(points))]
say(
    f"Spearman's coefficient of the {len(points)} rows: {again:.3f}. Inside each pair of classes: "
    + ", ".join(f"{v:+.2f} ({pair})" for pair, v in inside.items())
    + f". With one row left out it runs from {min(left_out):.2f} to {max(left_out):.2f}."
)
claim(
    "The 12 rows of LDCE's Table 2 give a rank correlation of -0.83",
    "LDCE, Sect. 4",
    near(again, PAPER_SPEARMAN, within=0.005),
)
s3_fr = only(ranks, part="s3 and fr")
if s3_fr:
    results.show_table(
        [
            {
                "numbers": r["source"],
                "points": r["points"],
                "Spearman": r["spearman"],
                "one left out": f"{r['without_low']:.2f} to {r['without_high']:.2f}",
                "inside a condition": ", ".join("–" if v is None else f"{v:+.2f}" for v in r["within"]),
            }
            for r in s3_fr
        ]
    )
    assert abs(float(value(s3_fr, "spearman", source="LDCE, Table 2")) - again) < 1e-6
    measured = value(s3_fr, "spearman", source="here, all faces")
    claim(
        "S³ and the flip rate are correlated negatively over our methods, too",
        "LDCE, Sect. 4",
        less(measured, 0.0),
    )
    claim(
        "... and about as strongly (within 0.2)", "LDCE, Sect. 4", near(measured, PAPER_SPEARMAN, within=0.2)
    )

# %% [markdown]
# What does it mean? The coefficient is negative: *methods whose explanations resemble the input more flip less often*,
# strongly in LDCE's table; how strongly here, the verdicts above say.
# That is the oldest bargain of the field, closeness against validity, and a good reason to report both. It does not make
# S³ a measure of validity: nobody would rank methods by how little their outputs resemble the input. And twelve rows from
# four methods are not twelve independent observations.
#
# ### Diversity, with LPIPS at last
# The thesis: $\sigma_L$ is 0.213 for DiME, and 0.110 for ACE without inpainting (Sects. 3.4.6 and 4.4.3). Notebook 03 had
# to make do with $\ell_1$. Five seeds:

# %%
diverse_full = stored("metrics_diversity")
if diverse_full:
    results.show_table(
        diverse_full,
        {
            "method": "method",
            "paper": "σ_L, thesis",
            "sigma_l": "σ_L, here",
            "against_dime": "minus DiME's",
            "sigma_l1": "with l1",
        },
    )
    for name in ("ACE, no inpainting", "ACE"):
        gap = value(diverse_full, "against_dime", method=name)
        claim(f"{name}: less diverse than DiME (LPIPS)", "Sect. 4.4.3", less(gap, 0.0))

# %% [markdown]
# ## 12 · The contest: methods by every measure, and measures by the truth
#
# Now to what needs known factors, and none of the three papers does. All methods built so far explain the same faces.
# Each published measure puts them in an
# order. So does the truth. **Which measure's order is nearest to the truth's?**
#
# First some faces, to see whom we are ranking.

# %%
net_smile = dime_study.classifier_of("smile-old", "smile")
test_faces, test_factors = dime_study.faces("test", "smile", 2 * ((FACES + 1) // 2))
test_faces, test_factors = test_faces[:FACES], test_factors[:FACES]
asked_for = 1 - net_smile.predict(test_faces)
explained = {
    name: method.explain(test_faces, asked_for, **alone)
    for name, method in conditions.methods_of("smile-old", "smile").items()
}
best_true, best_factors, reached = personas.true_counterfactual(test_factors, "smile", net_smile, asked_for)
answers = {}
for name, r in explained.items():
    if name == "ACE":
        answers["ACE, pre-explanation"] = r.extra["pre_explanation"]
    answers[name] = r.x_cf
columns = {"input": test_faces, **answers, "the truth": best_true}
captions = {name: verdicts(net_smile, images, asked_for, oracle) for name, images in columns.items()}
plots.image_grid(
    torch.cat([torch.stack([images[n] for images in columns.values()]) for n in range(FACES)][:6]),
    [
        (name.replace("ACE, pre-explanation", "pre-CE") + "\n" if n == 0 else "") + captions[name][n]
        for n in range(min(FACES, 6))
        for name in columns
    ],
    columns=len(columns),
    title="Eight answers and the true one; C: smile-old's P(wanted)",
)

# %%
contest_here = [
    {
        "method": name,
        "semantic": metrics.flip_rate(
            (net_smile.predict(images) == asked_for) & (oracle.predict(images) == asked_for)
        ),
        "edit_error": metrics.edit_error(test_faces, images, x_true=best_true, where=reached),
        "collateral": metrics.collateral_changes(
            test_faces, images, factors=test_factors, factor="smile", oracle=nets["oracle"]
        ).changed,
        "l1": metrics.lp_norm(test_faces, images, per_pixel=True, unit_range=True),
        "s3": metrics.s3(test_faces, images, network=simsiam),
        "lpips": metrics.lpips(test_faces, images, network=trunk),
    }
    for name, images in answers.items()
]
say(f"**This run, {FACES} faces** (to look at, not to conclude from):")
results.show_table(
    contest_here,
    {
        "method": "method",
        "edit_error": "edit error",
        "semantic": "semantic flip rate",
        "collateral": "collateral changes",
        "l1": "l1",
        "s3": "S³",
        "lpips": "LPIPS",
    },
)

# %% [markdown]
# With more faces (stored): the *place* of each method under each measure, 1 is best; measures over successful
# explanations where the papers count so. The last three rows are the truth.

# %%
LABEL = {
    "flip_rate": "flip rate", "confidence": "mean confidence", "cout": "COUT", "l1": "L1", "l1.5": "L1.5", "l2": "L2", "lpips": "LPIPS", "s3": "S³", "fs": "FS", "fva": "FVA",
    "mnac": "MNAC", "cd": "CD", "fid": "FID", "sfid": "sFID", "crossover_fid": "cross-over FID", "im1": "IM1", "im2": "IM2",
    "edit_error": "edit error", "semantic_flip_rate": "semantic flip rate", "collateral_changes": "collateral changes",
}  # fmt: skip
BETTER = conditions.PUBLISHED | conditions.TRUTHS  # measure -> "higher" or "lower"
TRUTHS = tuple(conditions.TRUTHS)
assert set(LABEL) == set(BETTER)


def oriented(rows, metric):
    """The values of the methods under a measure, more is better; NaN where a method has none."""
    sign = 1 if BETTER[metric] == "higher" else -1
    values = [float(r[metric]) if r[metric] is not None and r[metric].defined else math.nan for r in rows]
    return sign * torch.tensor(values, dtype=torch.float64)


def places(values):
    """1 for the best; methods with the same value share the mean of their places."""
    ahead = (values[None, :] > values[:, None]).sum(1) + (values[None, :] == values[:, None]).sum(1) / 2 + 0.5
    return ["–" if v.isnan() else f"{a:g}" for v, a in zip(values, ahead)]


for classifier, attribute in (("smile-old", "smile"), ("brittle", "smile")):
    rows = only(contest_full, classifier=classifier, attribute=attribute, kind="method")
    if rows:
        say(f"**{classifier}, {attribute}**")
        results.show_table(
            [
                {"measure": f"**{LABEL[m]}**" if m in TRUTHS else LABEL[m]}
                | dict(zip((r["method"] for r in rows), places(oriented(rows, m))))
                for m in LABEL
            ]
        )

# %% [markdown]
# To compare two orders, count pairs. Of two methods, do both measures put the same one ahead? **Kendall's** $\tau_b$ is
# the number of pairs on which they agree, less those on which they disagree, divided by the number of pairs that are not
# tied (the geometric mean of both lists'):
#
# $$ \tau_b = \frac{\sum_{i<j} \mathrm{sgn}(a_i-a_j)\,\mathrm{sgn}(b_i-b_j)}{\sqrt{\sum_{i<j}\mathrm{sgn}^2(a_i-a_j)\ \sum_{i<j}\mathrm{sgn}^2(b_i-b_j)}} \tag{8.22} $$
#
# It is 1 for the same order, -1 for the opposite one, about 0 for two that have nothing to do with each other.

# %% [markdown]
# ### Exercise 08.8 ●●○ (8 min): the measure of measures
#
# Write Eq. 8.22 for two lists of values (of the methods, under two measures). Where all values of one list are the same
# there is no order to agree with: return 0.
#
# <details><summary>Hint</summary>A table of signs for each list: <code>(v[:, None] - v[None, :]).sign()</code>.</details>


# %% tags=["exercise"]
@exercise("08.8")
def kendall(a, b):
    """(M,), (M,) -> a number in [-1, 1]."""
    # SOLUTION
    first, second = ((v[:, None] - v[None, :]).sign() for v in (a, b))
    pairs = (first.square().sum() * second.square().sum()).sqrt()
    return float((first * second).sum() / pairs) if pairs > 0 else 0.0
    # END SOLUTION


# %%
agreement = stored("metrics_agreement")


def entry(key, **wanted):
    """One entry of the stored table of agreements, or None."""
    found_rows = only(agreement, **wanted)
    return found_rows[0].get(key) if found_rows else None


for row in agreement:  # your function on the stored table of the methods gives the stored agreement
    if row["condition"] == "mean" or row["truth"] == "mean" or not row["tau"].defined:
        continue
    classifier, attribute = row["condition"].split(":")
    rows = only(contest_full, classifier=classifier, attribute=attribute, kind="method")
    a, b = oriented(rows, row["metric"]), oriented(rows, row["truth"])
    there = ~(a.isnan() | b.isnan())
    assert abs(kendall(a[there], b[there]) - row["tau"].mean) < 1e-6, (
        row["condition"],
        row["metric"],
        row["truth"],
    )

# %% [markdown]
# > **Predict first.** Of all these measures, which will agree best with the truth? Will any of them order the methods
# > *against* it?


# %%
def without_relatives(metric):
    """Mean agreement with those truths that have nothing in common with the measure by construction; None if there is none."""
    free = [
        r["tau"].mean
        for r in only(agreement, condition="mean", metric=metric)
        if r["truth"] in TRUTHS and r["shares"] is None and r["tau"].defined
    ]
    return sum(free) / len(free) if free else None


def ceiling(rows):
    """The highest mean agreement with the three truths that any order of these methods can reach, of all orders."""
    pairs = list(itertools.combinations(range(len(rows)), 2))
    first, second = torch.tensor(pairs).T
    truth = torch.stack(
        [(v[first] - v[second]).sign() for v in (oriented(rows, t) for t in TRUTHS)]
    )  # (3, pairs)
    truth = truth / (truth.square().sum(1, keepdim=True) * len(pairs)).sqrt()
    orders = torch.tensor(list(itertools.permutations(range(len(rows)))))
    signs = (orders[:, first] - orders[:, second]).sign().double()  # (orders, pairs)
    return float((signs @ truth.T).mean(1).max())


overall = sorted(
    (r for r in only(agreement, condition="mean", truth="mean", kind="published") if r["rank"] is not None),
    key=lambda r: r["rank"],
)
yardstick = only(agreement, condition="mean", kind="truth")
if overall:
    display(
        plots.interval_bars(
            [
                (LABEL[r["metric"]], r["tau_all_faces"] if r["tau_all_faces"].defined else None, r["tau"])
                for r in overall
            ],
            xlabel="Kendall's tau-b with the truth: mean of three truths and three conditions",
            title="Which published measure puts the methods in the true order?",
            reference="all faces counted",
            measured="counted as in the papers",
        )
    )
    results.show_table(
        [
            {
                "rank": r["rank"],
                "measure": LABEL[r["metric"]],
                "tau": r["tau"],
                **{LABEL[t]: entry("tau", condition="mean", metric=r["metric"], truth=t) for t in TRUTHS},
                "unrelated": without_relatives(r["metric"]),
                "behind the best": r["behind_best"],
                "best in": f"{r['best_share']:.0%}",
                "range": f"{r['tau_without_low']:.2f} to {r['tau_without_high']:.2f}",
                "chance": r["p_order"],
            }
            for r in overall
        ],
        {"rank": "rank", "measure": "measure", "tau": "tau, mean"}
        | {LABEL[t]: LABEL[t] for t in TRUTHS}
        | {
            "unrelated": "mean without relatives",
            "behind the best": "behind the best (paired)",
            "best in": "best in ... of the resamples",
        }
        | {"range": "tau, one method left out", "chance": "p of a random order"},
    )

# %%
if overall:
    first, second = overall[0], overall[1]
    above = [LABEL[r["metric"]] for r in overall if r["tau"].low > 0]
    against = [LABEL[r["metric"]] for r in overall if r["tau"].high < 0]
    unlikely = [LABEL[r["metric"]] for r in overall if r["p_order"] < 0.05]
    say(
        f"**{LABEL[first['metric']]}** agrees best with the truth: {first['tau']}. It is the best in "
        f"{first['best_share']:.0%} of the resampled sets of faces, and stays the best for {first['best_without']} of "
        f"{len(conditions.METHODS)} methods left out. The second, {LABEL[second['metric']]}, is behind by "
        f"{second['behind_best']}. Above 0 whichever faces are drawn, for these methods: {', '.join(above) or 'none'}; "
        f"below 0: {', '.join(against) or 'none'}. A random order of the methods comes as far from 0 in fewer than 5 % of "
        f"cases for {', '.join(unlikely) or 'none'} alone (not corrected for the {len(overall)} measures)."
    )
    tops = [
        ceiling(only(contest_full, classifier=c, attribute=a, kind="method"))
        for c, a in conditions.CONDITIONS.values()
    ]
    top = sum(tops) / len(tops)
    say(
        "**How high is that?** The truths contradict each other, so no order can please all three. Of all orders of "
        f"the methods the best reaches {top:.2f} (mean of the conditions); {LABEL[first['metric']]} has "
        f"{first['tau'].mean / top:.0%} of it."
    )
    related = entry("shares", condition="mean", metric=first["metric"], truth="mean")
    free = sorted(
        (r for r in overall if without_relatives(r["metric"]) is not None),
        key=lambda r: -without_relatives(r["metric"]),
    )
    if related:
        say(
            f"**A relative of the truth.** {LABEL[first['metric']]} has something in common with one of the truths by "
            f"construction ({related}). Leaving out all such pairs, for every measure, it has "
            f"{without_relatives(first['metric']):.2f} and is number {free.index(first) + 1} of {len(free)}; the "
            "first three are then "
            + ", ".join(f"{LABEL[r['metric']]} ({without_relatives(r['metric']):.2f})" for r in free[:3])
            + ". (Means of one to three truths, so not quite comparable, and without intervals: a caution, not a second ranking.)"
        )
    claim(
        f"{LABEL[first['metric']]}, the measure that agrees best with the truth, is ahead of the second, {LABEL[second['metric']]}",
        "this course",
        less(0.0, second["behind_best"]),
    )
    likely = first["p_order"] * len(overall)  # Bonferroni: the best of so many
    claim(
        "At least one published measure orders the methods like the truth, better than chance (faces and methods; relatives by construction included)",
        "this course",
        REPRODUCED if first["tau"].low > 0 and likely < 0.05 else INCONCLUSIVE,
    )
    camps = {
        LABEL[r["metric"]]: [entry("tau", condition="mean", metric=r["metric"], truth=t).mean for t in TRUTHS]
        for r in overall
    }
    still, moving = (
        [m for m, (_, semantic, collateral) in camps.items() if sign * collateral > 0 > sign * semantic]
        for sign in (1, -1)
    )
    rivalry = float(stats.spearmanr([v[1] for v in camps.values()], [v[2] for v in camps.values()])[0])
    say(
        "**Who sides with whom.** Order like *collateral changes* and against *semantic flips*, who does little is "
        f"ahead: {', '.join(still) or 'none'}. The other way round, who convinces is ahead: "
        f"{', '.join(moving) or 'none'}. Over the measures, the two columns are correlated by {rivalry:+.2f} "
        "(Spearman)"
        + (": what pleases one truth tends to displease the other" if rivalry < 0 else "")
        + ". On the side of all three: "
        f"{', '.join(m for m, v in camps.items() if min(v) > 0) or 'none'}."
    )
    say(
        "**How far do the three truths agree with each other?** (This is why no order reaches 1 in the mean.)"
    )
    results.show_table(
        [
            {"truth": LABEL[r["metric"]], "with": LABEL.get(r["truth"], r["truth"]), "tau": r["tau"]}
            for r in yardstick
            if r["truth"] != "mean" and r["metric"] < r["truth"]
        ],
        {"truth": "truth", "with": "with", "tau": "tau"},
    )

# %% [markdown]
# ### What this ranking is worth
#
# A ranking of rankings is itself a measure, so it gets the same treatment as the others. Its limits:
# - **Eight methods, one world, three conditions.** Several methods are close relatives (two variants each of DiME, ACE
#   and DVCE). The intervals answer *what if we had drawn other faces?*, not *what if we had chosen other methods?* For
#   that, the last column shuffles the names of the methods: how often does a random order come as far from 0? And leaving
#   one out shows how much hangs on a single one.
# - **The truths are ours.** There is one best answer by our definition, the smallest move of one factor. Two of the three
#   truths favour whoever does little, the third whoever does much; that is why the mean of the three is shown, and each
#   apart.
# - **Relatives by construction.** The edit error is an $\ell_1$ norm, and so is a part of closeness; a confirmed flip is
#   a flip first; MNAC asks the same oracle that counts collateral changes.
# - **The winner of many looks better than it is.** Whoever picks the best of many picks some luck with it; the share of
#   resamples in which it stays the best says how much.
# - **Stand-ins.** LPIPS, S³, FS and FID look through networks that were trained on this very world. On photographs, with
#   networks trained on something else, they may do worse or better. What carries over is the way of asking.
#
# By the way, which *place* do the references get, if they take part? A good measure puts the true counterfactual first
# and the copy last (each joins the eight methods alone, so there are nine places):

# %%
if agreement:
    results.show_table(
        [
            {"measure": LABEL[m]}
            | {
                f"{what}, {c}": entry(key, condition=c, metric=m, truth="mean")
                for c in ("smile-old:smile", "brittle:smile")
                for key, what in (("true_rank", "the truth"), ("copy_rank", "the copy"))
            }
            for m in LABEL
            if m not in TRUTHS
        ]
    )

# %% [markdown]
# ## 13 · What the released code does differently
#
# - **COUT counts its last step in full.** The released routine switches pixels in batches and multiplies the sum of all
#   trapezoids by the width of *one* batch. If the batch does not divide the number of pixels, the last, smaller batch
#   counts like the others, and the area reaches beyond 1. The largest possible area of a class, by the size of the image:

# %%
reach = []
for side in (16, 32, 64, 128, 224, 256):
    pixels, batch = side * side, max(1, side * side // 50)
    points = -(-pixels // batch) + 1
    sure = torch.ones(1, points)  # a class that is certain all the way
    true_width = torch.linspace(0, points - 1, points).mul(batch).clamp(max=pixels) / pixels
    reach.append(
        {
            "side": side,
            "pixels in a batch": batch,
            "released code": float(((sure[:, 1:] + sure[:, :-1]) / 2).sum() * batch / pixels),
            "by true widths": float(cout_score(true_width, 0 * sure, sure)),
        }
    )
results.show_table(reach, digits=4)

# %% [markdown]
# - **CD has a $1/N$ in LDCE** (Eq. 21): a sum over images of something that belongs to the whole set. Read literally it
#   divides CD by nothing, since every summand is the same; the thesis (Eq. 3.19) has no such sum. LDCE also takes the
#   oracle's *probabilities*, the thesis its *decisions*.
# - **sFID is two things.** Here and in these papers it is the *split* FID. Elsewhere in generative modelling (Nash et al.
#   2021, and the evaluation of ADM) sFID is the *spatial* FID, taken from another layer of Inception. The numbers have
#   nothing to do with each other.
# - **Covariances.** They are divided by $n-1$; divided by $n$ instead, as a plain mean of squares, they come out smaller
#   by the factor $(n-1)/n$, which matters with few images. With fewer images than features they are singular, and general
#   eigenvalues of their product lose digits; the library takes singular values instead (below).
# - **Who counts.** FID, FVA, FS, MNAC and CD over successful counterfactuals, $\sigma_L$ over all; COUT, here, over all.
#   Tables seldom say so.
# - **IM2's norm.** The thesis prints $\lVert x\rVert$ without saying which; the paper it cites has the 1-norm. On images
#   in $[-1,1]$ a grey image would have the norm 0; the library measures brightness in $[0,1]$.
# - **LPIPS prints its weights inside the norm and multiplies them outside**: the released $w_l$ are the squares of those
#   in the paper's Eq. 1.
#
# How the library takes the distance, with singular values:

# %%
little = features[:32].double(), features[32:64].double()
moments = [m for part in little for m in (part.mean(0), part.T.cov())]
by_eigenvalues, by_singular_values = float(frechet_distance(*moments)), metrics.frechet_distance(*moments)
say(
    f"32 images against 32 others, {features.shape[1]} features: {by_eigenvalues:.8f} by eigenvalues (yours), "
    f"{by_singular_values:.8f} by singular values (the library's): {abs(by_eigenvalues - by_singular_values):.0e} "
    "apart. Here the difference does not matter; for the distance of a set to itself it decides whether 0 comes out."
)
show(frechet._distance, docstring=False)
show(frechet._root, docstring=False)

# %% [markdown]
# ## 14 · Failures: who wins by every measure
#
# The promise of the first figure. For each measure that was asked about all suspects (for the FIDs: those of section
# 6): who comes first, and on which place the truth is. The truth wins the edit error and the mask overlap by
# definition.

# %%
winners = []
for name, (suspects, sign) in board.items():
    ranked = sorted((w for w in suspects if suspects[w].defined), key=lambda w: -sign * suspects[w].mean)
    top = [w for w in ranked if suspects[w].mean == suspects[ranked[0]].mean]
    honest = next((w for w in ("the truth", "an honest edit") if w in suspects), None)
    worse = sum(sign * suspects[w].mean > sign * suspects[honest].mean for w in ranked)
    winners.append(
        {
            "measure": name,
            "better": "higher" if sign > 0 else "lower",
            "winner": ", ".join(top),
            "its value": suspects[top[0]],
            "the truth (or honest edit)": suspects[honest],
            "place of the truth": f"{worse + 1} of {len(ranked)}",
        }
    )
results.show_table(winners)
lost = [w["measure"] for w in winners if not w["place of the truth"].startswith("1 ")]
published = [
    w
    for w in winners
    if w["measure"] not in ("semantic flip rate", "edit error", "mask overlap", "collateral changes")
]
worthless = ("repainted", "pixels", "somebody else", "a copy", "dealt out again", "noise", "a blur")
cheated = [w["measure"] for w in published if any(who in w["winner"] for who in worthless)]
copies = [w["measure"] for w in winners if "a copy" in w["winner"]]
say(
    f"The truth comes first, alone or with others, in {len(winners) - len(lost)} of {len(winners)}. Of the "
    f"{len(published)} published measures among them, something worthless wins or shares {len(cheated)}: "
    f"{', '.join(cheated)}. The copy of the input alone wins or shares {len(copies)}: {', '.join(copies)}."
)

# %% [markdown]
# What to take home:
# - **One number is never enough.** Nearly every measure above can be won, or shared, by something
#   worthless. Report validity *and* closeness *and* realism, and semantic flips where a judge can be had.
# - **Ask what the number would be for doing nothing, for noise, for a stranger.** The line-up costs nothing, and says
#   more about a measure than its formula. Put the copy and the random face into your tables, as Table 4.6 does.
# - **Name the network, the number of images, and who was counted.** Each moves the result.
# - **An interval, or no claim.** The thesis's own examples for sFID have no interval, and two of the three turn on a
#   margin below 2 % (section 11).
# - **The truth is worth building a world for.** Where there is none, plant a shortcut and see who finds it.

# %% [markdown]
# ## 15 · The ledger
#
# The claims, with the source of each; "this course" marks our own.

# %%
claim.show()

# %% [markdown]
# ## 16 · Exercises
#
# The eight built-in ones:

# %%
progress("08")

# %% [markdown]
# Open ones, without a check:
#
# - **A ●○○** Invite a seventh suspect to the line-up: the truth, with one grey level of noise on every pixel. Which
#   measures does it lose, and does it deserve to?
# - **B ●○○** Put the *oracle* in the place of the brittle classifier in section 3. Do 100 specks still fool it? How many
#   do?
# - **C ●●○** FS cannot see age. Train nothing: build a better embedding from what is there, for instance by joining the
#   vectors of `identity` and `simsiam`. Does it see glasses and age *and* keep strangers apart?
# - **D ●●○** $c\sqrt{2/(1+c^2)}$ holds for balanced classes. Derive it for a share $p$ of smiling faces, and check it
#   with `personas.sample`.
# - **E ●●○** The contest counts three truths alike. Weight them as *you* would, and see whether another measure wins.
#   Then say why your weights are not better than ours.
# - **F ●●●** Make a measure of your own from two published ones (say, the product of two ranks), and see whether it
#   agrees better with the truth than either. On how many faces must you have seen that before you believe it?

# %% [markdown]
# ## References
#
# 1. G. Jeanneret. *Towards Explainable and Interpretable Deep Neural Networks*, PhD thesis, 2024: Sect. 2.2.2, Sects.
#    3.4.3–3.4.6, Sect. 4.4 and Appendix B (Eqs. 8.1 here is its 2.6 and B.1; 8.8 and 8.9 its B.4 and B.3; 8.12 and 8.13
#    its 2.7 and 2.8; 8.14 its B.2; 8.15–8.17 its 3.10, 3.11 and 3.19; 8.18 its 3.20).
# 2. *Latent Diffusion Counterfactual Explanations* (LDCE), Appendix D (8.1 is its Eq. 14; 8.4 and 8.5 its 16 and 15; 8.6
#    its 18 and 19; 8.10 its 22) and Table 2.
# 3. M. Augustin, V. Boreiko, F. Croce, M. Hein. *Diffusion Visual Counterfactual Explanations* (DVCE). NeurIPS 2022,
#    Sect. 4.1 and Appendix E (cross-over FID).
# 4. S. Khorram, L. Fuxin. *Cycle-Consistent Counterfactuals by Latent Transformations*. CVPR 2022 (COUT).
# 5. R. Zhang et al. *The Unreasonable Effectiveness of Deep Features as a Perceptual Metric*. CVPR 2018 (LPIPS, Eq. 8.7).
# 6. M. Heusel et al. *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium*. NeurIPS 2017
#    (FID).
# 7. X. Chen, K. He. *Exploring Simple Siamese Representation Learning*. CVPR 2021 (SimSiam, under S³).
# 8. A. Van Looveren, J. Klaise. *Interpretable Counterfactual Explanations Guided by Prototypes*. ECML PKDD 2021 (IM1,
#    IM2).
# 9. S. Singla et al. *Explanation by Progressive Exaggeration*. ICLR 2020 (FVA, attribute mixing).
# 10. Q. McNemar. *Note on the Sampling Error of the Difference Between Correlated Proportions or Percentages*.
#     Psychometrika 1947 (Eq. 8.21).
# 11. M. Kendall. *The Treatment of Ties in Ranking Problems*. Biometrika 1945 (Eq. 8.22).
# 12. C. Nash et al. *Generating Images with Sparse Representations*. ICML 2021 (the other sFID).
