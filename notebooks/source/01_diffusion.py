# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # 01 · Diffusion from the ground up
#
# A diffusion model is a network that can do exactly one thing: look at a noisy image and say *which part is noise*.
# Everything else, from drawing faces out of nothing to explaining a classifier, is bookkeeping with Gaussians around that one skill.
# In this notebook you build the bookkeeping yourself, and you train the network yourself, in less than a minute.
#
# ## What you will learn
# - to destroy an image step by step, and to jump to any step at once (*the closed form*);
# - to train a denoiser, and what its guess $\hat x_0$ of the clean image really is: **an average over everything possible**;
# - to walk back: DDPM (with dice) and DDIM (without), in a thousand steps or in ten, and how much noise a step may add;
# - to steer the walk with a classifier, and why a classifier that was trained on clean images steers badly;
# - to steer without a classifier, to fill holes in images, and where both recipes quietly fail;
# - what survives when a face is noised half-way and drawn again: the door to counterfactual explanations.
#
# You will not have to believe the formulas. Beside the images there is a second, tiny world, a few Gaussians on the line, in which the
# *perfect* denoiser can be written down. There every formula is checked against the truth, and the notebook stops if one fails.
#
# ## What you need
# Python, a little PyTorch (tensors, `autograd`), and what a Gaussian, a mean and a variance are. No GPU, no network.
#
# **Time.** The notebook runs in at most 90 seconds on two idle cores (`fast` mode), about half of it for your own training. Reading and the
# ten exercises take an evening. Exercises sit where you need them; leave them open and the library's answer is used instead.
# `CFX_MODE=full` trains longer; this notebook has no separate `paper` mode (it does the same as `full`).

# %% tags=["parameters"]
MODE = ""

# %%
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from IPython.display import Markdown, display

from cfx_lib import metrics, zoo
from cfx_lib.bench import results
from cfx_lib.diffusion import Diffusion, cosine_betas, linear_betas, respaced_timesteps
from cfx_lib.learn import (  # hint and solution are for you to call
    exercise,
    hint,  # noqa: F401
    mode,
    nb01_tools,
    plots,
    progress,
    show,
    solution,  # noqa: F401
    widgets,
)
from cfx_lib.learn.compare import less, near
from cfx_lib.learn.nb01_tools import Mixture, NoisyClassifier, TinyDenoiser, wasserstein
from cfx_lib.train.loop import Recipe, fit
from cfx_lib.types import Noise, Step
from cfx_lib.worlds import fashion, personas

warnings.filterwarnings("ignore", message="IProgress not found")
MODE = mode(MODE)
SECONDS = 40 if MODE == "fast" else 240  # wall time that your denoiser may train


def say(text):
    """Show a sentence whose numbers were computed just now."""
    display(Markdown(text))


def seeded(seed):
    """A generator of its own for every draw, so that every figure comes out the same twice."""
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The idea in one figure
#
# Read the **upper row from left to right**: a face drowns in noise. No network is involved, only dice.
# Read the **lower row from right to left**: starting from *pure noise*, a network removes a little of what it takes for noise, again and again.
#
# > **Predict first.** The lower row starts from noise that never contained a face. At which noise level will you first *see* one? And will it
# > be the face of the upper row?

# %%
ddpm = zoo.load("personas/ddpm", channels_last=True)
faces = personas.load("test", 48)[0][[9, 41, 23, 36, 13, 3, 44, 27]]
portrait = Diffusion(ddpm, ddpm.betas, respacing="50", learned_range=ddpm.learned_range)

levels = [1, 3, 5, 8, 11, 15, 20, 26, 35, 49]  # of the 50 steps
forward = [portrait.q_sample(faces[:1], i, torch.randn(faces[:1].shape, generator=seeded(i))) for i in levels]
x_t = torch.randn(faces[:1].shape, generator=seeded(6))
noise = Noise(0).bind(x_t)
backward = {}
for i in reversed(range(50)):
    backward[i] = x_t
    with torch.no_grad():
        x_t = portrait.ddpm_step(x_t, i, noise.draw(x_t))
plots.image_rows(
    {
        "adding noise →": torch.cat([faces[:1], *forward]),
        "← removing it": torch.cat([x_t, *(backward[i] for i in levels)]),
    },
    col_labels=["clean", *(f"t = {int(portrait.timesteps[i])}" for i in levels)],
    size=0.95,
)

# %% [markdown]
# **What you see.** Below a mid-range $t$ the noisy picture still *contains* the face: you can recognise it through the grain. Far to the right nothing of it is
# left, so the lower row has to make decisions: first where a head is, then hair and glasses, the corner of the mouth last. It ends at *a* face, not at *the* face.
#
# **Coarse things are decided at high noise, fine things at low noise.** Keep this sentence. Every method of this course is a
# different way to interfere with these decisions.

# %% [markdown]
# ## The mathematics, part 1: adding noise
#
# One step of the forward chain shrinks the image a little and adds a little noise (Ho et al. 2020, Eq. 2):
#
# $$q(x_t \mid x_{t-1}) = \mathcal N\!\big(x_t;\ \sqrt{1-\beta_t}\,x_{t-1},\ \beta_t I\big) \tag{1.1}$$
#
# Why shrink? So that variances add up to one: if $x_{t-1}$ has variance 1, then $x_t$ has $(1-\beta_t)\cdot 1 + \beta_t = 1$. The chain
# neither explodes nor fades. With $\alpha_t = 1-\beta_t$, what survives of the *variance* of the image after $t$ steps is the product
#
# $$\bar\alpha_t = \prod_{s=1}^{t} (1-\beta_s) \tag{1.2}$$
#
# and since a sum of Gaussians is Gaussian, the whole walk collapses into a single jump (Ho et al. 2020, Eq. 4):
#
# $$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\;\varepsilon, \qquad \varepsilon \sim \mathcal N(0, I) \tag{1.3}$$
#
# The schedule $\beta_1,\dots,\beta_T$ is a choice. The *linear* one (Ho et al. 2020, section 4) grows evenly to 0.02 at $T=1000$; the *cosine* one
# (Nichol and Dhariwal 2021, Eq. 17) prescribes what should survive,
#
# $$\bar\alpha_t = \frac{f(t)}{f(0)},\qquad f(t) = \cos^2\!\Big(\frac{t/T+s}{1+s}\cdot\frac{\pi}{2}\Big),\quad s = 0.008 \tag{1.4}$$

# %% [markdown]
# ### Exercise 01.1 ●○○ (3 min)
# Write Eq. 1.2 for all $t$ at once.
# <details><summary>Hint</summary>
#
# `1 - betas` holds every $\alpha_t$. `torch.cumprod` does for products what `cumsum` does for sums.
# </details>


# %% tags=["exercise"]
@exercise("01.1")
def alpha_bar_of(betas):
    """All alpha_bar_t from all beta_t: (T,) -> (T,)."""
    # SOLUTION
    return torch.cumprod(1 - betas, dim=0)
    # END SOLUTION


# %% [markdown]
# ### Exercise 01.2 ●○○ (4 min)
# Write Eq. 1.3 for a batch in which every image may have its own $t$, hence its own $\bar\alpha_t$.
# <details><summary>Hint</summary>
#
# `a = alpha_bar_t.view(-1, 1, 1, 1)` gives every image its own number. Then it is one line, with two roots.
# </details>


# %% tags=["exercise"]
@exercise("01.2")
def q_sample(x0, alpha_bar_t, noise):
    """Noise clean images: x0 (N,C,H,W), alpha_bar_t (N,), noise (N,C,H,W) -> x_t (N,C,H,W)."""
    # SOLUTION
    a = alpha_bar_t.view(-1, 1, 1, 1)
    return a.sqrt() * x0 + (1 - a).sqrt() * noise
    # END SOLUTION


# %% [markdown]
# Your two functions draw the next picture. Both rows of a kind use the *same* noise; only the schedule differs.
#
# > **Predict first.** The linear schedule works well on large photographs. On these tiny ones, which schedule wastes its last third on pictures
# > that are pure noise anyway?

# %%
T = 1000
betas = linear_betas(T)
alpha_bar, alpha_bar_cosine = alpha_bar_of(betas).float(), alpha_bar_of(cosine_betas(T)).float()
clothes, labels = fashion.load("train")
test_clothes, test_labels = fashion.load("test", 1000)

at = torch.tensor([0, 100, 200, 300, 400, 500, 600, 700, 800, 999])
boot = test_clothes[:1].expand(len(at), -1, -1, -1)
grain = torch.randn(boot.shape, generator=seeded(1))
plots.image_rows(
    {"linear": q_sample(boot, alpha_bar[at], grain), "cosine": q_sample(boot, alpha_bar_cosine[at], grain)},
    col_labels=[f"t = {int(t)}" for t in at],
    size=0.95,
)

# %%
plots.curve(
    {"linear": alpha_bar, "cosine": alpha_bar_cosine},
    xlabel="timestep t",
    ylabel="alpha_bar: share of the variance\nthat is still image",
    hlines={"half image, half noise": 0.5},
)

# %%
share = {
    name: float((a < 0.05).double().mean())
    for name, a in (("linear", alpha_bar), ("cosine", alpha_bar_cosine))
}
half = {name: int((a > 0.5).sum()) for name, a in (("linear", alpha_bar), ("cosine", alpha_bar_cosine))}
say(
    f"**What you see.** Under the linear schedule {share['linear']:.0%} of all timesteps keep less than 5 % of the image's variance, under the "
    f"cosine one {share['cosine']:.0%}. Half of the variance is gone at t = {half['linear']} (linear) and t = {half['cosine']} (cosine). "
    "So *t itself means nothing*: when two papers start their edit at 'step 300', ask for ᾱ. We stay with the linear schedule, "
    "which the networks of this course use. (Python counts from 0: `alpha_bar[0]` is the formulas' $\\bar\\alpha_1$, so 't = 0' in a figure already means one step of noise.)"
)

# %% [markdown]
# ### Does the jump really equal the walk?
#
# Time for the second world: a mixture of three Gaussians on the line. Its points are "images" of one pixel. Noised with Eq. 1.3, each component stays Gaussian, with mean
# $\sqrt{\bar\alpha_t}\,\mu_k$ and variance $\bar\alpha_t\sigma_k^2 + 1-\bar\alpha_t$: we know the exact density of $x_t$ at every $t$.
# Below, many points walk step by step with Eq. 1.1, and equally many jump with Eq. 1.3. The line is the exact density.

# %%
world = Mixture(means=[-1.0, 0.2, 1.1], stds=[0.15, 0.1, 0.2], weights=[0.4, 0.2, 0.4])
points, STOP = world.sample(20_000), 250
walked, dice = points.clone(), seeded(2)
for beta in betas[:STOP].float():
    walked = (1 - beta).sqrt() * walked + beta.sqrt() * torch.randn(points.shape, generator=dice)
jumped = q_sample(points, alpha_bar[STOP - 1].expand(len(points)), torch.randn(points.shape, generator=dice))
line = torch.linspace(-3, 3, 400)
exact = world.pdf(line, float(alpha_bar[STOP - 1]))
display(
    plots.histogram(
        {f"{STOP} steps (Eq. 1.1)": walked, "one jump (Eq. 1.3)": jumped},
        pdf={"exact density": (line, exact)},
        xlabel=f"value at step {STOP}",
    )
)
mean_exact = float((line * exact).sum() / exact.sum())
spread = float(((line - mean_exact) ** 2 * exact).sum() / exact.sum()) ** 0.5
for name, values in (("walked", walked), ("jumped", jumped)):
    error = spread / len(values) ** 0.5
    assert abs(float(values.mean()) - mean_exact) < 4 * error, name  # four standard errors
    assert abs(float(values.std()) / spread - 1) < 4 / (2 * len(values)) ** 0.5, name
say(
    f"Mean and standard deviation: exact {mean_exact:.3f}, {spread:.3f}; walked {walked.mean():.3f}, {walked.std():.3f}; "
    f"jumped {jumped.mean():.3f}, {jumped.std():.3f}. Both agree with the truth within four standard errors (asserted)."
)

# %% [markdown]
# The jump is why diffusion models can be trained at all: to show the network an image at $t=700$ we need one line, not seven hundred steps.

# %% [markdown]
# ## The mathematics, part 2: learning to see the noise
#
# Training is almost absurdly simple. Take an image, take a random $t$, take noise, jump, and ask the network which noise it was
# (Ho et al. 2020, Eq. 14 and Algorithm 1):
#
# $$L = \mathbb E_{x_0,\,t,\,\varepsilon}\ \big\| \varepsilon - \varepsilon_\theta(x_t, t) \big\|^2 \tag{1.5}$$
#
# ### Exercise 01.3 ●●○ (6 min)
# Write Eq. 1.5 for one batch. Your function trains the network below.
# <details><summary>Hint</summary>
#
# Three lines: noise the images with `q_sample` and `alpha_bar[t]`; ask `model(x_t, t).sample`; compare with the *noise* by `F.mse_loss`.
# </details>


# %% tags=["exercise"]
@exercise("01.3")
def noise_prediction_loss(model, x0, t, noise, alpha_bar):
    """The mean squared error of the predicted noise: x0, noise (N,C,H,W), t (N,) long, alpha_bar (T,) -> one number.

    `model(x_t, t).sample` is the predicted noise (N,C,H,W).
    """
    # SOLUTION
    x_t = q_sample(x0, alpha_bar[t], noise)
    return F.mse_loss(model(x_t, t).sample, noise)
    # END SOLUTION


# %% [markdown]
# ### Your network, your training
#
# The network is a small U-Net, the same `diffusers` class as the large ones; the data are 10,000 photographs of clothes. The only trick: blocks of 2×2 pixels are folded
# into channels, so that the network visits a quarter of the places. The loop is the library's own; it keeps a moving average of the
# weights (EMA), whose samples are usually the better ones (Ho et al. 2020, appendix B, use one too), and it stops by the clock.
#
# > **Predict first.** A network that always answers "no noise at all" has a loss of 1, the variance of $\varepsilon$. Will the loss of a perfect network go to 0?

# %%
show(TinyDenoiser, docstring=False)


# %%
def draw_clothes(generator, size):
    """A batch of clean images, as (images,)."""
    return (clothes[torch.randint(len(clothes), (size,), generator=generator)],)


def one_batch_loss(model, generator, x0):
    """Random timesteps, random noise, and your loss."""
    t = torch.randint(T, (len(x0),), generator=generator)
    return noise_prediction_loss(model, x0, t, torch.randn(x0.shape, generator=generator), alpha_bar)


def train(model, batches, loss, name, steps, seconds, **options):
    """Train with the library's loop until `steps` are made or `seconds` have passed; the moving average and the curve."""
    settings = {"warmup": 30, "decay_from": 0.4, "ema": 0.99, "precision": "fp32", "cpu": True, **options}
    with tempfile.TemporaryDirectory() as folder:
        return fit(model, batches, loss, Recipe(steps, minutes=seconds / 60, **settings), Path(folder) / name)


with torch.random.fork_rng():
    torch.manual_seed(0)
    fresh = TinyDenoiser()
net, curve = train(
    fresh, draw_clothes, one_batch_loss, "your denoiser", steps=20_000, seconds=SECONDS, batch=32, lr=2e-3
)
display(
    plots.losses(
        {"loss (means over 50 steps)": ([c["step"] for c in curve], [c["loss"] for c in curve])}, logy=True
    )
)
say(
    f"{curve[-1]['step']} steps in {curve[-1]['seconds']:.0f} s, {curve[-1]['step'] * 32 / len(clothes):.1f} passes over the data. "
    f"The loss fell from {curve[0]['loss']:.2f} to {curve[-1]['loss']:.3f}."
)

# %% [markdown]
# **What you see.** Almost all of the fall happens in the first moments: that is the easy lesson, "most of this is noise". The long tail after it is where clothes are learnt, and
# it is nearly invisible in the loss. *Never judge a diffusion model by its loss curve; look at samples.* And no, the loss cannot reach 0: at low noise the grain is
# faint against the texture of the cloth, and nobody can tell the two apart with certainty.
#
# ### The guess of the clean image
#
# If the network knows the noise, it knows the image: put $\varepsilon_\theta$ in the place of $\varepsilon$ in Eq. 1.3 and solve (Ho et al. 2020, Eq. 15; Song et al. 2021, Eq. 9):
#
# $$\hat x_0 = \frac{x_t - \sqrt{1-\bar\alpha_t}\;\varepsilon_\theta(x_t, t)}{\sqrt{\bar\alpha_t}} \tag{1.6}$$
#
# ### Exercise 01.4 ●○○ (4 min)
# Write Eq. 1.6 for a batch in which every image has its own $\bar\alpha_t$.
#
# <details><summary>Hint</summary>
#
# Solve Eq. 1.3 for $x_0$: first subtract, then divide. Both factors carry roots.
# </details>


# %% tags=["exercise"]
@exercise("01.4")
def x0_from_eps(x_t, alpha_bar_t, eps):
    """The clean estimate: x_t, eps (N,C,H,W), alpha_bar_t (N,) -> x0_hat (N,C,H,W), not clipped."""
    # SOLUTION
    a = alpha_bar_t.view(-1, 1, 1, 1)
    return (x_t - (1 - a).sqrt() * eps) / a.sqrt()
    # END SOLUTION


# %% [markdown]
# > **Predict first.** We noise three test images to several $t$ and let your network guess the clean image *in one go*. Beyond $t=600$ hardly anything of the image is left.
# > What will the guess look like there: sharp but another garment, blurred, or noise?

# %%
at = torch.tensor([50, 200, 300, 400, 500, 600, 900])
chosen = test_clothes[[0, 2, 1]]
rows = {}
with torch.no_grad():
    for k, name in enumerate(fashion.CLASSES[test_labels[j]] for j in (0, 2, 1)):
        x0 = chosen[k : k + 1].expand(len(at), -1, -1, -1)
        x_t = q_sample(x0, alpha_bar[at], torch.randn(x0.shape, generator=seeded(10 + k)))
        guess = x0_from_eps(x_t, alpha_bar[at], net(x_t, at).sample)
        rows[f"{name}: x_t"] = torch.cat([x0[:1], x_t])
        rows["its guess x̂0" + " " * k] = torch.cat([x0[:1], guess])
plots.image_rows(rows, col_labels=["clean", *(f"t = {int(t)}" for t in at)], size=0.95)

# %% [markdown]
# **What you see.** At low $t$ the guess is sharp and right. With growing $t$ it does not become a *wrong garment*, it becomes **blurred**: print and seams go first, then the sleeves, until a ghostly
# average garment is left. (The last columns are another matter; we come to them in a moment.) The blur is no weakness of your small network; it is the best possible answer to Eq. 1.5. The minimiser of a squared error is a mean:
#
# $$\hat x_0^{\,*} = \mathbb E\,[\,x_0 \mid x_t\,] \tag{1.7}$$
#
# the average of **all clean images that could have led to this $x_t$**. In the world on the line we can watch it, with two sharp "classes" at $-1$ and $+1$.
#
# > **Predict first.** You observe $x_t = 0.3$ at high noise. Is the best guess $-1$, $+1$, or something that is never in the data?

# %%
two = Mixture(means=[-1.0, 1.0], stds=[0.03, 0.03], weights=[0.5, 0.5])
line = torch.linspace(-2, 2, 201)
guesses = {}
for t in (50, 150, 350, 600, 900):
    a = alpha_bar[t].expand(len(line))
    x_t = line.view(-1, 1, 1, 1)
    guesses[f"t = {t}"] = (line, x0_from_eps(x_t, a, two.eps(x_t, a.view(-1, 1, 1, 1))).flatten())
display(
    plots.curve(
        guesses,
        xlabel="what you observe: x_t",
        ylabel="best guess of x_0",
        hlines={"class +1": 1.0, "class -1": -1.0},
        markers=False,
    )
)

t, near_to = 350, 0.3  # the check: average the x_0 of the many points that happened to land near x_t = 0.3
many = two.sample(400_000, seed=3)
noisy = q_sample(many, alpha_bar[t].expand(len(many)), torch.randn(many.shape, generator=seeded(4)))
landed = many[(noisy - near_to).abs() < 0.02]
observed = torch.full((1, 1, 1, 1), near_to)
formula = float(x0_from_eps(observed, alpha_bar[t : t + 1], two.eps(observed, alpha_bar[t])))
counted, error = float(landed.mean()), float(landed.std()) / len(landed) ** 0.5
assert abs(formula - counted) < 4 * error + 0.01
say(
    f"At t = {t}, {len(landed)} points landed near x_t = {near_to}; their x_0 average to {counted:.3f} ± {error:.3f}. "
    f"Eq. 1.6 with the perfect network says {formula:.3f}. The nearest of all {len(many)} data points is {float((many - formula).abs().min()):.2f} away: "
    "the guess is an average, not an image."
)

# %% [markdown]
# At low noise the curve is a staircase (the observation decides the class); at high noise it is nearly flat at the overall mean. **Keep this figure for notebook 02.** A classifier that looks at $\hat x_0$
# looks at an average of faces, not at a face. DiME therefore denoises all the way to a real face at every step. Notebook 02 mostly runs a cheap version that dares to use $\hat x_0$ after all, and measures what that costs.
#
# And the last columns of your clothes? A perfect network would show the grey average there. Yours shows coarse noise, and Eq. 1.6 says why: it divides by $\sqrt{\bar\alpha_t}$.

# %%
say(
    "Eq. 1.6 multiplies every error of the network by √((1-ᾱ)/ᾱ): "
    + ", ".join(
        f"{float(((1 - alpha_bar[t]) / alpha_bar[t]).sqrt()):.1f} at t = {t}"
        for t in (50, 300, 500, 600, 900)
    )
    + ". A few per cent of error in ε are invisible on the left of the figure and fill the picture on the right. Samplers survive this because "
    "x̂0 is clipped to [-1, 1] and, as you will see next, hardly counts at high noise."
)

# %% [markdown]
# ## The mathematics, part 3: one step back
#
# If $x_0$ were known, the step back would be known too: Bayes' rule for Gaussians gives (Ho et al. 2020, Eq. 6 and 7)
#
# $$q(x_{t-1} \mid x_t, x_0) = \mathcal N(\tilde\mu_t, \tilde\beta_t I),\qquad
# \tilde\mu_t = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\,x_0 + \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\,x_t \tag{1.8}$$
#
# $$\tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t \tag{1.9}$$
#
# We do not know $x_0$, so DDPM puts the guess $\hat x_0$ in its place and rolls the dice (Algorithm 2):
#
# $$x_{t-1} = \tilde\mu_t(\hat x_0, x_t) + \sigma_t\, z,\qquad z\sim\mathcal N(0,I),\quad \text{no noise at the last step} \tag{1.10}$$
#
# ### Exercise 01.5 ●●○ (6 min)
# Write the mean of Eq. 1.8.
# <details><summary>Hint</summary>
#
# Two coefficients, both over $1-\bar\alpha_t$. Mind which root has a bar ($\bar\alpha_{t-1}$) and which has none ($\alpha_t = 1-\beta_t$).
# </details>


# %% tags=["exercise"]
@exercise("01.5")
def posterior_mean(x0, x_t, beta_t, alpha_bar_t, alpha_bar_prev):
    """Mean of q(x_{t-1} | x_t, x_0): two images (N,C,H,W) and three 0-dimensional tensors -> (N,C,H,W)."""
    # SOLUTION
    of_x0 = alpha_bar_prev.sqrt() * beta_t / (1 - alpha_bar_t)
    of_x_t = (1 - beta_t).sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar_t)
    return of_x0 * x0 + of_x_t * x_t
    # END SOLUTION


# %% [markdown]
# **Check it without trusting Bayes.** Fix $x_0$, let many points go to $t-1$ and one step further, and fit a straight line "where was the point before, given where it is now". The line is the posterior mean, the scatter
# around it is $\tilde\beta_t$.

# %%
t, x0 = 60, torch.full((200_000, 1, 1, 1), 0.7)
before = q_sample(x0, alpha_bar[t - 1].expand(len(x0)), torch.randn(x0.shape, generator=seeded(5)))
now = (1 - betas[t]).sqrt() * before + betas[t].sqrt() * torch.randn(x0.shape, generator=seeded(6))
slope = float(((now - now.mean()) * (before - before.mean())).mean() / now.var())
fitted = float(before.mean()) + slope * (1.0 - float(now.mean()))  # the fitted line at x_t = 1
scatter = float((before - before.mean() - slope * (now - now.mean())).var())
one = torch.ones(1, 1, 1, 1)
formula = float(posterior_mean(0.7 * one, one, betas[t], alpha_bar[t], alpha_bar[t - 1]))
beta_tilde = float((1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * betas[t])
assert abs(fitted - formula) < 2e-3 and abs(scatter / beta_tilde - 1) < 0.02
say(
    f"For x_t = 1: the fitted line gives {fitted:.4f}, Eq. 1.8 gives {formula:.4f}. Scatter {scatter:.5f}, "
    f"Eq. 1.9 gives {beta_tilde:.5f} (asserted within 0.002 and 2 %)."
)

# %% [markdown]
# ## The algorithm as the library really runs it
#
# Everything above sits in one class, `Diffusion`. A reverse step is two short functions. Read them beside Eq. 1.6, 1.8 and 1.10:

# %%
say(
    'Skip `v` and `grad` for now; both have a section of their own below. `respacing="100"` takes a hundred of the thousand steps, explained next.'
)
show(Diffusion.p_mean_variance, docstring=False)
show(Diffusion.ddpm_step, docstring=False)

# %%
hundred = Diffusion(net, betas, respacing="100", learned_range=False)
x_t = torch.randn(2, 1, 32, 32, generator=seeded(7))
with torch.no_grad():
    step = hundred.p_mean_variance(x_t, 60, clip=False)
mine = posterior_mean(step.x0_hat, x_t, hundred.betas[60], hundred.alpha_bar[60], hundred.alpha_bar_prev[60])
assert torch.allclose(mine, step.mean, atol=1e-4)
say("Your posterior mean and the library's agree on your network's own step (asserted).")

# %% [markdown]
# Now draw. Each column is one starting noise; the rows are snapshots of $\hat x_0$ on the way, and the result.
#
# > **Predict first.** How early will it be settled whether a column becomes a shoe or a pullover?

# %%
start = torch.randn(10, 1, 32, 32, generator=seeded(1))
noise, x_t, snapshots = Noise(0).bind(start), start, {}
with torch.no_grad():
    for i in reversed(range(100)):
        if i in (90, 60, 50, 40, 25):
            snapshots[f"guess at t = {int(hundred.timesteps[i])}"] = hundred.x0_hat(x_t, i)
        x_t = hundred.ddpm_step(x_t, i, noise.draw(x_t))
snapshots["sample"] = drawn_by_ddpm = x_t
plots.image_rows(snapshots, size=0.95)

# %% [markdown]
# **What you see.** The first guesses are the amplified errors of above, clipped to black and white; they do no harm, since each step takes only a drop of them. Then grey ghosts, then the columns part: silhouettes first, sleeves and heels next,
# texture last. These clothes do not exist. Some look odd; remember how long you trained.

# %% [markdown]
# ## Fewer steps: respacing and DDIM
#
# A thousand network calls for one picture is a lot. **Respacing** (Nichol and Dhariwal 2021, section 4) keeps, say, 50 of the 1000 timesteps and recomputes the betas so that $\bar\alpha$ at the kept steps is unchanged. Each step is then longer.
#
# **DDIM** (Song et al. 2021, Eq. 12) goes further: it notices that Eq. 1.5 never uses the chain, only the jump. So *any* way back with the same jumps is legitimate, even one without dice:
#
# $$x_{t-1} = \sqrt{\bar\alpha_{t-1}}\;\hat x_0 + \sqrt{1-\bar\alpha_{t-1}-\sigma_t^2}\;\varepsilon_\theta(x_t,t) + \sigma_t z \tag{1.11}$$
#
# $$\sigma_t = \eta\,\sqrt{\frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}}\sqrt{1-\frac{\bar\alpha_t}{\bar\alpha_{t-1}}} \tag{1.12}$$
#
# (Eq. 16 there). $\eta=1$ is DDPM with the small variance of Eq. 1.9; $\eta=0$ draws no noise at all: jump to the guess, and jump back up with the *same* $\varepsilon_\theta$.
#
# ### Exercise 01.6 ●●○ (6 min)
# Write the step with $\eta = 0$.
# <details><summary>Hint</summary>
#
# Two moves: Eq. 1.6 from $x_t$ to $\hat x_0$, then Eq. 1.3 back up to the level $\bar\alpha_{t-1}$, with eps in the place of the noise.
# </details>


# %% tags=["exercise"]
@exercise("01.6")
def ddim_step(x_t, eps, alpha_bar_t, alpha_bar_prev):
    """One deterministic DDIM step: x_t, eps (N,C,H,W), two 0-dimensional tensors -> x_{t-1} (N,C,H,W)."""
    # SOLUTION
    x0_hat = (x_t - (1 - alpha_bar_t).sqrt() * eps) / alpha_bar_t.sqrt()
    return alpha_bar_prev.sqrt() * x0_hat + (1 - alpha_bar_prev).sqrt() * eps
    # END SOLUTION


# %% [markdown]
# Now the most instructive picture of this notebook. The world on the line again, with its perfect denoiser. Blue: the exact density of $x_t$ at each $t$ (each column scaled to its own maximum). Red: paths of single points, walking from the right
# (noise) to the left (data). Both panels start from the same points.
#
# > **Predict first.** Will the red paths of the two panels end in the same places? Can two paths of your DDIM step cross?

# %%
chain = Diffusion(world.denoiser(betas), betas, respacing="200", learned_range=False)
walkers = torch.linspace(-2.2, 2.2, 23).view(-1, 1, 1, 1)
bars = torch.cat([torch.ones(1, dtype=torch.float64), chain.alpha_bar])


def path(step):
    """All states of one walk: (timesteps, values)."""
    x, states = walkers, [walkers.flatten()]
    for i in reversed(range(chain.num_steps)):
        x = step(x, i)
        states.append(x.flatten())
    return torch.cat([chain.timesteps.flip(0), torch.zeros(1)]), torch.stack(states)


dice = seeded(8)
paths = {
    "DDPM": path(lambda x, i: chain.ddpm_step(x, i, torch.randn(x.shape, generator=dice), clip=False)),
    "DDIM, your step": path(lambda x, i: ddim_step(x, chain.predict(x, i)[0], bars[i + 1], bars[i])),
}
display(nb01_tools.flow_figure(world, alpha_bar, paths))
ends = paths["DDIM, your step"][1][-1]
assert (ends.diff() > 0).all()
say(
    "DDPM's walkers stagger, cross and change their minds; DDIM's glide along a current and never cross (asserted: their order at the end "
    "is their order at the start). The fate of a DDIM walker is sealed by its starting noise: a code for the image."
)

# %% [markdown]
# ### Determinism, and what it is good for
# Same starting noise, different dice. Asserted: the DDIM results are equal bit for bit, DDPM's are not. Since DDIM is a fixed map, it can also be run *forwards*, from an image to its noise: **inversion**, the foundation of TIME (notebook 06).

# %%
small = start[:6]
twenty_five = Diffusion(net, betas, respacing="25", learned_range=False)
ddim = [twenty_five.sample(small, Noise(seed).bind(small), eta=0.0) for seed in (0, 1)]
ddpm_ = [twenty_five.sample(small, Noise(seed).bind(small)) for seed in (0, 1)]
assert torch.equal(*ddim) and not torch.equal(*ddpm_)
long_ddim = hundred.sample(small, None, eta=0.0)
plots.image_rows(
    {
        "DDIM, dice 0": ddim[0],
        "DDIM, dice 1": ddim[1],
        "DDIM, 100 steps": long_ddim,
        "DDPM, dice 0": ddpm_[0],
        "DDPM, dice 1": ddpm_[1],
    },
    size=0.95,
)

# %% [markdown]
# Look at the *quality* as well. The rows have 25 steps (the middle one 100), and your DDIM rows are probably rougher than the DDPM rows, although Song et al. report the opposite. Who is right? There are two suspects, the sampler and the network. In the exact world we can question the first alone. We measure the distance between
# samples and truth (earth mover's distance: how far, on average, mass must be carried) with the **perfect** denoiser:

# %%
COUNTS, GROUPS = (5, 10, 20, 50, 100), 8
cloud = torch.randn(GROUPS * 2000, 1, 1, 1, generator=seeded(9))
distance = {"DDPM (η = 1)": [], "DDIM (η = 0)": []}
for count in COUNTS:
    short = Diffusion(world.denoiser(betas), betas, respacing=count, learned_range=False)
    for name, eta in (("DDPM (η = 1)", 1.0), ("DDIM (η = 0)", 0.0)):
        x, dice = cloud, seeded(10)
        for i in reversed(range(count)):
            x = short.ddim_step(x, i, eta, torch.randn(x.shape, generator=dice), clip=False)
        distance[name].append(metrics.average(torch.tensor([wasserstein(g, world) for g in x.chunk(GROUPS)])))
floor = sum(wasserstein(world.sample(2000, seed=s), world) for s in range(8)) / 8
plots.curve(
    {name: (COUNTS, values) for name, values in distance.items()},
    xlabel="number of steps",
    ylabel="distance to the truth",
    logx=True,
    logy=True,
    hlines={"samples of the data themselves": floor},
)

# %%
ratio = distance["DDPM (η = 1)"][1].mean / distance["DDIM (η = 0)"][1].mean
say(
    f"With a perfect network and ten steps, DDPM is {ratio:.1f} times as far from the truth as DDIM: as the paper says. The sampler is innocent, and "
    "what remains is **your network**. DDIM carries each of its errors to the end. DDPM buries them under fresh noise, and the network gets another chance to correct them. "
    "The lesson for explanations: a deterministic sampler is cheap with a good denoiser and treacherous with a poor one."
)

# %% [markdown]
# ## How much noise? Learned variance
#
# Eq. 1.10 left $\sigma_t^2$ open. Ho et al. (2020, section 3.2) name two candidates, $\tilde\beta_t$ and $\beta_t$, and say for which data each is exactly right: $\tilde\beta_t$ if the data are **a single point**, $\beta_t$ if the data are already **pure noise** of variance 1. Real data
# lie between, and so Nichol and Dhariwal (2021, Eq. 15) let the network choose, on the log scale. Its second output $v\in[-1,1]$ is read as below (Eq. 15 has the share $\nu$ itself; the shift from $[-1,1]$ is the released code's):
#
# $$\log\sigma_t^2 = \nu\log\beta_t + (1-\nu)\log\tilde\beta_t,\qquad \nu = \tfrac{1}{2}(v+1) \tag{1.13}$$
#
# ### Exercise 01.7 ●○○ (4 min)
# Write Eq. 1.13: return the *logarithm* of the variance.
#
# <details><summary>Hint</summary>
#
# First $\nu$, then mix the two *logarithms*.
# </details>


# %% tags=["exercise"]
@exercise("01.7")
def learned_log_variance(v, beta_t, beta_tilde_t):
    """Log of the variance from the network's v (N,C,H,W) in [-1,1] and two 0-dimensional tensors -> (N,C,H,W)."""
    # SOLUTION
    share = (v + 1) / 2
    return share * beta_t.log() + (1 - share) * beta_tilde_t.log()
    # END SOLUTION


# %% [markdown]
# For Gaussian data of standard deviation $s$ the right variance is known exactly, so we can see **what a perfect network would have to learn**: the share $\nu$ at each step, for narrow data ($s$ small) and wide data.
#
# > **Predict first.** For $s\to0$ and for $s=1$ the curves must lie at 0 and at 1. Where is the curve for $s=0.3$ near 0, and where near 1?

# %%
fifty = Diffusion(None, betas, respacing="50")
shares = {
    f"s = {s}": (fifty.timesteps[1:], nb01_tools.variance_share(fifty, s)[1:])
    for s in (0.01, 0.1, 0.3, 0.6, 1.0)
}
figure = plots.curve(shares, xlabel="timestep t", ylabel="share ν of log β", markers=False)
figure.axes[0].legend(loc="center right", bbox_to_anchor=(1, 0.68), frameon=False)
display(figure)
assert torch.allclose(nb01_tools.variance_share(fifty, 1.0)[1:], torch.ones(49).double(), atol=1e-6)
assert torch.allclose(nb01_tools.exact_variance(fifty, 0.0)[1:], fifty.posterior_variance[1:])
for s in (0.1, 0.3, 0.6):
    assert abs(float(nb01_tools.variance_share(fifty, s)[-1]) - s**2) < 0.01

learned = nb01_tools.gaussian_chain(betas, "50", 0.3, "learned")
x = torch.randn(4, 1, 1, 1, generator=seeded(11)).double()
v = learned.model(x, learned.timesteps[20].expand(4))[:, 1:]
library = learned.p_mean_variance(x, 20, clip=False).log_variance
assert torch.allclose(
    learned_log_variance(v, learned.betas[20], learned.posterior_variance[20]), library, atol=1e-5
)

# %% [markdown]
# Both claims of section 3.2 hold exactly (asserted: $s=1$ gives $\nu=1$, $s=0$ gives $\tilde\beta$). Between them the answer depends on the noise level. At low noise a
# data set looks wide once its spread exceeds the noise, and $\nu$ climbs towards 1 (the curve of the narrowest data never gets far); at high noise it looks like a point of some size, and $\nu$ settles at $s^2$ (asserted). No single choice is right for all steps: that is why it is worth learning.
#
# Does it matter? A chain whose steps add too little noise ends too narrow, one that adds too much ends too wide. For Gaussian data the end of the chain can be computed without drawing a single sample:

# %%
TRUE_STD = 0.5
counts = (3, 5, 10, 25, 50, 100)
ending = {
    name: [
        nb01_tools.chain_std(nb01_tools.gaussian_chain(betas, str(n), TRUE_STD, kind), TRUE_STD)
        for n in counts
    ]
    for name, kind in (("β̃ (small)", "small"), ("β (large)", "large"), ("learned (exact ν)", "learned"))
}
display(
    plots.curve(
        {name: (counts, values) for name, values in ending.items()},
        xlabel="number of steps",
        ylabel="standard deviation of the samples",
        logx=True,
        hlines={"the data": TRUE_STD},
    )
)
ten = nb01_tools.gaussian_chain(betas, "10", TRUE_STD, "small")
x = torch.randn(20_000, 1, 1, 1, generator=seeded(12))
drawn = ten.sample(x, nb01_tools.Dice(13), clip=False)
assert abs(float(drawn.std()) / ending["β̃ (small)"][2] - 1) < 0.03
say(
    f"With ten steps: small variance {ending['β̃ (small)'][2]:.3f}, large {ending['β (large)'][2]:.3f}, learned {ending['learned (exact ν)'][2]:.3f}, truth {TRUE_STD}. "
    f"(Drawing {len(drawn)} samples with the small one gives {float(drawn.std()):.3f}.) With many steps the choice hardly matters; with few it decides."
)

# %% [markdown]
# ## Steering with a classifier
#
# We want not just *a* garment but *a boot*. Bayes' rule splits what we want to climb into what the denoiser already climbs and what a classifier adds:
#
# $$\nabla_{x_t}\log p(x_t\mid y) = \nabla_{x_t}\log p(x_t) + \nabla_{x_t}\log p(y\mid x_t) \tag{1.14}$$
#
# Dhariwal and Nichol (2021, Algorithm 1) shift the mean of every DDPM step by the classifier's gradient, multiplied by the variance and a scale $s$:
#
# $$x_{t-1}\sim\mathcal N\big(\mu_\theta + s\,\Sigma\,\nabla_{x_t}\log p_\phi(y\mid x_t),\ \Sigma\big) \tag{1.15}$$
#
# Look closely: the classifier is asked about $x_t$, **a noisy image**.
#
# ### Exercise 01.8 ●●● (10 min)
# Write the gradient of $\log p(y\mid x_t)$ for a batch.
# <details><summary>Hint</summary>
#
# `x = x_t.detach().requires_grad_()`; `log_softmax` the logits; pick entry `y[n]` of row `n`; **sum** over the batch (images do not influence each other, so each gets its own gradient); `torch.autograd.grad(total, x)[0]`.
# </details>


# %% tags=["exercise"]
@exercise("01.8")
def guidance_gradient(classifier, x_t, noise_std, y):
    """Gradient of log p(y | x_t) with respect to x_t: x_t (N,C,H,W), noise_std (N,), y (N,) long -> (N,C,H,W).

    `classifier(x_t, noise_std)` gives logits (N,K); noise_std is sqrt(1 - alpha_bar), to be passed on.
    """
    # SOLUTION
    with torch.enable_grad():
        x = x_t.detach().requires_grad_()
        log_prob = classifier(x, noise_std).log_softmax(dim=1)
        total = log_prob[torch.arange(len(y)), y].sum()
        return torch.autograd.grad(total, x)[0]
    # END SOLUTION


# %% [markdown]
# ### The check: does guidance land where Bayes says?
# Two overlapping classes on the line. The *exact* classifier of noisy points is known (the share of each component at that noise level). Guided by it with $s=1$, the samples must follow the exact density of the class. For contrast we also
# guide with a classifier that is exact **for clean points** and is asked about noisy ones.
#
# > **Predict first.** The clean classifier is *perfect* at what it was made for. How badly can it steer?

# %%
pair = Mixture(means=[-0.5, 0.5], stds=[0.5, 0.5], weights=[0.5, 0.5])
CLASS = 1


def noise_aware(x, noise_std):
    """The exact classifier of noisy points: logits (N,2)."""
    return pair._log_terms(x.flatten(), 1 - noise_std.double() ** 2)


def clean_only(x, noise_std):
    """The exact classifier of clean points, deaf to the noise level: logits (N,2)."""
    return pair._log_terms(x.flatten(), torch.ones(len(x)))


def guided_sample(diffusion, x, classifier, y, scale, dice, clip=True):
    """DDPM with the mean of every step shifted (Eq. 1.15); `ddpm_step` takes the gradient of a loss, hence the minus."""
    for i in reversed(range(diffusion.num_steps)):
        noise_std = (1 - diffusion.alpha_bar[i]).sqrt().float().expand(len(x))
        grad = -scale * guidance_gradient(classifier, x, noise_std, y) if scale else None
        with torch.no_grad():
            x = diffusion.ddpm_step(x, i, dice.draw(x), grad=grad, clip=clip)
    return x


line = torch.linspace(-2.2, 2.2, 400)
pair_chain = Diffusion(pair.denoiser(betas), betas, respacing="250", learned_range=False)
crowd = torch.randn(8000, 1, 1, 1, generator=seeded(14))
wanted = torch.full((len(crowd),), CLASS)
guided = {
    name: guided_sample(pair_chain, crowd, classifier, wanted, 1.0, nb01_tools.Dice(15), clip=False)
    for name, classifier in (("noise-aware classifier", noise_aware), ("clean classifier", clean_only))
}
display(
    plots.histogram(
        guided,
        pdf={"exact density of the class": (line, pair.pdf(line, component=CLASS))},
        xlabel="guided samples",
    )
)
alone = Mixture([pair.means[CLASS]], [pair.stds[CLASS]], [1.0])
off = {name: wasserstein(samples, alone) for name, samples in guided.items()}
assert off["noise-aware classifier"] < 0.04 and off["clean classifier"] > 0.1
say(
    f"Distance to the exact density: {off['noise-aware classifier']:.3f} with the noise-aware classifier, {off['clean classifier']:.3f} with the clean one. "
    "Guidance is not a trick, it is Bayes' rule, **if** the classifier understands noise. The clean one is far too sure of itself about points that are mostly noise, and pushes too hard. "
    '(Eq. 1.15 is a first-order step: with few, long steps even the right classifier lands beside the line. Try `respacing="25"`.)'
)

# %% [markdown]
# ### The same with images
# We train two tiny classifiers of clothes: one on clean images, one on images at all noise levels (it is told the level). They take seconds.
#
# > **Predict first.** Draw the two curves "accuracy against $t$" in the air before you run the cell.


# %%
def draw_labelled(generator, size):
    """A batch of (images, labels)."""
    rows = torch.randint(len(clothes), (size,), generator=generator)
    return clothes[rows], labels[rows]


def classifier_loss(noisy):
    """Cross-entropy on clean images, or on images at random timesteps."""

    def loss(model, generator, x0, y):
        t = torch.randint(T, (len(x0),), generator=generator)
        a = alpha_bar[t] if noisy else torch.ones(len(x0))
        x_t = q_sample(x0, a, torch.randn(x0.shape, generator=generator))
        return F.cross_entropy(model(x_t, (1 - a).sqrt()), y)

    return loss


guides = {}
for name, noisy, steps in (("trained on clean images", False, 400), ("trained on noisy images", True, 900)):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        fresh = NoisyClassifier()
    label = "noisy" if noisy else "clean"
    guides[name], _ = train(
        fresh, draw_labelled, classifier_loss(noisy), label, steps=steps, seconds=8, batch=128, lr=3e-3
    )
clean_net = guides["trained on clean images"]
guides["trained on clean images"] = lambda x, noise_std: clean_net(
    x, torch.zeros(len(x))
)  # always told: no noise

ts = (0, 50, 100, 150, 200, 300, 400, 500, 600, 800, 999)
accuracy = {name: [] for name in guides}
for t in ts:
    a = alpha_bar[t].expand(len(test_clothes))
    x_t = q_sample(test_clothes, a, torch.randn(test_clothes.shape, generator=seeded(t)))
    for name, guide in guides.items():
        with torch.no_grad():
            accuracy[name].append(metrics.rate(guide(x_t, (1 - a).sqrt().float()).argmax(1) == test_labels))
plots.curve(
    {name: (ts, values) for name, values in accuracy.items()},
    xlabel="timestep t of the test images",
    ylabel="accuracy",
    hlines={"chance": 0.1},
)

# %%
k = ts.index(300)
gap = [accuracy[name][k].mean for name in guides]
say(
    f"On clean test images the two reach {accuracy['trained on clean images'][0].mean:.0%} and {accuracy['trained on noisy images'][0].mean:.0%}. "
    f"At t = 300, where the silhouette is still plain to you, it is {gap[0]:.0%} against {gap[1]:.0%}. And t = 300 is *late* in the reverse chain: "
    "when the kind of garment is decided, the clean classifier is guessing."
)

# %% [markdown]
# Now steer. Every column starts from the *same noise* and uses the same dice in all rows; above each column stands the class that we ask for.
#
# > **Predict first.** In which row will you recognise the classes? And will the clean classifier *believe* that its own row succeeded?

# %%
SCALE = (
    6.0  # the exact world needed 1; guides that were trained for a minute give gradients that are too timid
)
fifty_steps = Diffusion(net, betas, respacing="50", learned_range=False)
wanted = torch.arange(10).repeat(4)
start40 = torch.randn(40, 1, 32, 32, generator=seeded(1))
steered = {"unguided": guided_sample(fifty_steps, start40, None, wanted, 0, Noise(0).bind(start40))}
for name, guide in guides.items():
    steered[f"guide {name}"] = guided_sample(
        fifty_steps, start40, guide, wanted, SCALE, Noise(0).bind(start40)
    )
display(
    plots.image_rows(
        {name.replace(" trained", "\ntrained"): x[:10] for name, x in steered.items()},
        col_labels=[c.replace(" ", "\n") for c in fashion.CLASSES],
        size=0.95,
    )
)

opinion = []
for name, x in steered.items():
    row = {"who steered": name}
    for judge_name, judge in guides.items():
        with torch.no_grad():
            said = judge(x.clamp(-1, 1), torch.zeros(len(x))).argmax(1)
        row[f"wanted class, says the one {judge_name}"] = metrics.rate(said == wanted)
    opinion.append(row)
results.show_table(opinion)

# %% [markdown]
# **What you see.** Steered by the noise-aware classifier, the *same noise* becomes another garment, usually the one that was asked for. Steered by the clean one, the
# pictures mostly stay with the unguided row. Its gradients at high noise point nowhere, and at low noise the garment is already settled.
#
# Notice the form of the table: nobody judges only their own work. A guide can be satisfied with a picture that convinces nobody else; so in this course flips are confirmed by an independent judge (*semantic flip rate*, notebook 02).
#
# **And here is the problem of this whole course.** The classifier that we want to *explain* is somebody's classifier, trained on clean images. We may not retrain it on noise; then we would be explaining another network. DiME, ACE, DVCE and LDCE are four
# answers to the question: *how do I get a useful gradient from a clean classifier for a noisy image?*

# %% [markdown]
# ## Steering without a classifier
#
# Ho and Salimans (2021) drop the classifier. Train one denoiser that may or may not be told the class; the difference of its two answers **is** a classifier's gradient, since the perfect noise prediction is a score in disguise (Dhariwal and Nichol 2021, Eq. 11):
#
# $$\varepsilon^*(x_t) = -\sqrt{1-\bar\alpha_t}\;\nabla_{x_t}\log p(x_t) \tag{1.16}$$
#
# Walk past the conditional answer, away from the unconditional one (Ho and Salimans 2021, Eq. 6):
#
# $$\tilde\varepsilon = (1+w)\,\varepsilon_\theta(x_t, y) - w\,\varepsilon_\theta(x_t) \tag{1.17}$$
#
# ### Exercise 01.9 ●○○ (3 min)
# Write Eq. 1.17.
#
# <details><summary>Hint</summary>
#
# Start at the conditional prediction and walk on, by $w$ times the way from the unconditional to the conditional. $w=0$ must change nothing.
# </details>


# %% tags=["exercise"]
@exercise("01.9")
def cfg(eps_cond, eps_uncond, w):
    """Classifier-free guidance: two noise predictions (N,C,H,W) and a weight -> (N,C,H,W)."""
    # SOLUTION
    return (1 + w) * eps_cond - w * eps_uncond
    # END SOLUTION


# %% [markdown]
# First Eq. 1.16, asserted with numerical derivatives. Then the question that everybody who turns up the guidance scale should ask: *which distribution do I sample from?* The usual answer is the sharpened one,
#
# $$p_w(x) \;\propto\; p(x\mid y)\,p(y\mid x)^{w} \;\propto\; p(x\mid y)^{1+w}\,p(x)^{-w} \tag{1.18}$$
#
# In the exact world we know both predictions and the density 1.18. The line is Eq. 1.18, the histogram is what DDIM with Eq. 1.17 really draws.
#
# > **Predict first.** Where do the samples go when $w$ grows: towards the centre of their class, or away from the other class? And will they sit on the line?

# %%
a, h = alpha_bar[300], 1e-4
x = torch.linspace(-2, 2, 81).double()
slope = (pair.pdf(x + h, float(a)).log() - pair.pdf(x - h, float(a)).log()) / (2 * h)
assert torch.allclose(pair.eps(x, a), -(1 - a).sqrt() * slope, atol=1e-5)  # Eq. 1.16

conditional, unconditional = pair.denoiser(betas, CLASS), pair.denoiser(betas)
landing, summary = {}, []
grid = torch.linspace(-4, 4, 4001).double()
for w in (0, 1, 4):
    guided_net = lambda x, t, w=w: cfg(conditional(x, t), unconditional(x, t), w)  # noqa: E731
    x = Diffusion(guided_net, betas, respacing="200", learned_range=False).sample(
        crowd, None, eta=0.0, clip=False
    )
    sharpened = (pair.pdf(grid, component=CLASS).log() * (1 + w) - w * pair.pdf(grid).log()).exp()
    sharpened = sharpened / (sharpened.sum() * (grid[1] - grid[0]))
    display(
        plots.histogram(
            {f"drawn with w = {w}": x}, pdf={"Eq. 1.18": (grid[1500:3250], sharpened[1500:3250])}, xlabel="x"
        )
    )
    mean = float((grid * sharpened).sum() / sharpened.sum())
    spread = float(((grid - mean) ** 2 * sharpened).sum() / sharpened.sum()) ** 0.5
    groups = x.chunk(GROUPS)
    summary.append(
        {
            "w": w,
            "mean, drawn": metrics.average(torch.stack([g.mean() for g in groups])),
            "mean, Eq. 1.18": mean,
            "spread, drawn": metrics.average(torch.stack([g.std() for g in groups])),
            "spread, Eq. 1.18": spread,
        }
    )
results.show_table(summary)

# %% [markdown]
# **What you see.** At $w=0$ the samples sit on the line. As $w$ grows they flee from the *other* class, past the centre of their own, and huddle together: typical examples become caricatures, and variety is lost. And
# they do **not** follow Eq. 1.18, at any $w>0$: the reason is that noising and sharpening do not commute (worked out by Bradley and Nakkiran 2024). Guidance is a useful push, not a sampler of a distribution you can name. LDCE and TIME (notebooks 05 and 06) push in this way.

# %% [markdown]
# ## Inpainting by composition
#
# Suppose part of an image must stay. RePaint (Lugmayr et al. 2022, Eq. 8) needs no new network: after every reverse step, overwrite the known part ($m=1$) with the *original noised to the same level*:
#
# $$x_{t-1} = m\odot\big(\sqrt{\bar\alpha_{t-1}}\,x_0 + \sqrt{1-\bar\alpha_{t-1}}\,z\big) + (1-m)\odot x_{t-1}^{\text{network}} \tag{1.19}$$
#
# ### Exercise 01.10 ●●○ (5 min)
# Write Eq. 1.19 for one step; `x_unknown` is what the network drew.
#
# <details><summary>Hint</summary>
#
# Noise the known image with Eq. 1.3 to the level where the step *arrived*, then choose by the mask.
# </details>


# %% tags=["exercise"]
@exercise("01.10")
def compose(x_unknown, x0_known, mask, alpha_bar_prev, noise):
    """Eq. 1.19: images and noise (N,C,H,W), mask 1 where known, a 0-dimensional tensor -> x_{t-1} (N,C,H,W)."""
    # SOLUTION
    known = alpha_bar_prev.sqrt() * x0_known + (1 - alpha_bar_prev).sqrt() * noise
    return mask * known + (1 - mask) * x_unknown
    # END SOLUTION


# %%
def inpaint(diffusion, x0, mask, dice, x_T, clip=True):
    """Reverse chain with the known part put back after every step."""
    x = x_T
    for i in reversed(range(diffusion.num_steps)):
        with torch.no_grad():
            x = diffusion.ddpm_step(x, i, dice.draw(x), clip=clip)
        x = compose(x, x0, mask, diffusion.alpha_bar_prev[i], dice.draw(x))
    return x


keep = torch.zeros(1, 1, 32, 32)
keep[..., :16, :] = 1  # the upper half is known
originals = test_clothes[[1, 2, 6, 8, 13, 18, 23, 0]]
filled = {"original": originals, "what is kept": originals * keep + (1 - keep) * 0.0}
for seed in (0, 1):
    x_T = torch.randn(originals.shape, generator=seeded(20 + seed))
    filled[f"completed, dice {seed}"] = inpaint(fifty_steps, originals, keep, Noise(seed).bind(x_T), x_T)
kept = filled["completed, dice 0"] * keep - originals * keep
assert kept.abs().max() < 1e-5  # the known half is exactly the original
plots.image_rows(filled, size=0.95)

# %% [markdown]
# **What you see.** The known half is untouched (asserted), and the new half differs with the dice. Coarsely it fits: there is cloth under cloth and a sole under a shoe. But look along the border: widths jump, greys do not match, trousers grow into a skirt.
# The two halves hardly talk to each other.
#
# **Are the seams the fault of your small network, or of the recipe?** The exact world answers. Take pairs of numbers with correlation $\rho$, fix the first, let the composition fill in the second. The truth is $\mathcal N(\rho\,x^{(1)},\ 1-\rho^2)$.
#
# > **Predict first.** The denoiser is perfect. Does Eq. 1.19 draw from the truth? Will more steps help?

# %%
RHO, KNOWN = 0.9, 1.5
mask = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
pairs = torch.full((4000, 2, 1, 1), KNOWN)
seams = []
for count in (10, 50, 250):
    exact_pair = Diffusion(nb01_tools.pair_denoiser(betas, RHO), betas, respacing=count, learned_range=False)
    x_T = torch.randn(pairs.shape, generator=seeded(30))
    second = inpaint(exact_pair, pairs, mask, nb01_tools.Dice(31), x_T, clip=False)[:, 1].flatten()
    seams.append(
        {
            "steps": count,
            "mean, drawn": metrics.average(second),
            "mean, truth": RHO * KNOWN,
            "spread, drawn": float(second.std()),
            "spread, truth": (1 - RHO**2) ** 0.5,
        }
    )
results.show_table(seams)

# %%
short_of = 1 - seams[-1]["mean, drawn"].mean / (RHO * KNOWN)
say(
    f"Even with a perfect denoiser and {seams[-1]['steps']} steps, the second number falls {abs(short_of):.0%} {'short of' if short_of > 0 else 'beyond'} where it belongs. The known part is noised anew at every step, so at high noise it speaks too indistinctly, and "
    "by the time it is clear, the unknown part is settled. This is why RePaint jumps back and forth (*resampling*), which we leave out here. ACE (notebook 03) composes in this way, and lives with the seams because its masks are small."
)

# %% [markdown]
# ## The shipped network: faces
#
# From clothes to the world of this course. `personas/ddpm` is the same kind of network, trained for longer on faces that were drawn from known factors. Everything you wrote applies to it unchanged.
#
# One thing is different: the question that the network was asked. You saw that Eq. 1.6 multiplies an error of $\varepsilon_\theta$ by $\sqrt{(1-\bar\alpha_t)/\bar\alpha_t}$. On clothes that fills the picture with coarse noise; on faces it
# tints the whole image. So this network was trained to predict the **velocity** (Salimans and Ho 2022, appendix D; not the $v$ of Eq. 1.13),
#
# $$v = \sqrt{\bar\alpha_t}\;\varepsilon - \sqrt{1-\bar\alpha_t}\;x_0 \tag{1.20}$$
#
# Together with Eq. 1.3 it gives both things that you need, and neither divides by a small number:
#
# $$\hat x_0 = \sqrt{\bar\alpha_t}\;x_t - \sqrt{1-\bar\alpha_t}\;v_\theta,\qquad \varepsilon_\theta = \sqrt{\bar\alpha_t}\;v_\theta + \sqrt{1-\bar\alpha_t}\;x_t \tag{1.21}$$
#
# At little noise $v\approx\varepsilon$; at much noise $v\approx-x_0$: the network is always asked for what cannot be read off its input. `zoo.load` applies the second half of Eq. 1.21, so that to us it remains an $\varepsilon_\theta$. Look inside once:

# %%
t = torch.tensor([50, 300, 600, 900])
a = (1 - ddpm.betas).cumprod(0)[t].float().view(-1, 1, 1, 1)
with torch.no_grad():
    x_0, noise = faces[:4], torch.randn(faces[:4].shape, generator=seeded(39))
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
    v, eps = ddpm.unet(x_t, t).sample, ddpm(x_t, t)
assert torch.allclose(eps, a.sqrt() * v + (1 - a).sqrt() * x_t, atol=1e-4)  # Eq. 1.21, right
from_v, from_eps = a.sqrt() * x_t - (1 - a).sqrt() * v, x0_from_eps(x_t, a.flatten(), eps)
assert torch.allclose(from_v, from_eps, atol=1e-3)  # Eq. 1.21, left, and Eq. 1.6: the same guess
plots.image_rows(
    {"x_t": x_t, "guess, Eq. 1.21": from_v, "truth": x_0},
    titles={"x_t": [f"t = {int(k)}" for k in t]},
    title="The clean guess at four noise levels",
)

# %% [markdown]
# Now faces out of nothing:

# %%
n = 8 if MODE == "fast" else 24
x_T = torch.randn(n, *faces.shape[1:], generator=seeded(40))
noise, x_t, chain = Noise(0).bind(x_T), x_T, []
with torch.no_grad():
    for i in reversed(
        range(portrait.num_steps)
    ):  # the same steps as portrait.sample(x_T, noise), kept for the slider below
        step = portrait.p_mean_variance(x_t, i)
        chain.append(Step(i, int(portrait.timesteps[i]), x_t, step.x0_hat))
        x_t = step.mean + (step.variance.sqrt() * noise.draw(x_t) if i else 0)
invented = x_t
plots.image_grid(
    invented, columns=8, title="New faces (how far from the training faces? see the model's card)"
)

# %% [markdown]
# Drag the slider, or press play: left the noisy state, right the guess that the network makes of it. When is the hair decided, when the mouth?

# %%
widgets.trajectory(chain, image=0)


# %%
def corner(x):
    """The colour of the upper left corner of each image (N,3): background, in the data always the same."""
    return x[:, :, :4, :4].mean((2, 3))


tint = {
    name: float(corner(x).std(0).mean()) for name, x in (("data", faces), ("samples", invented.clamp(-1, 1)))
}
say(
    f"**Look at the backgrounds.** From face to face their colour varies by {tint['data']:.3f} in the data and by {tint['samples']:.3f} in the samples (standard "
    "deviation, on the scale from -1 to 1). Where the second is larger, you see the network's own error: the overall tint of an image is decided at the highest noise, "
    "and all later steps take it for part of the picture. Keep it in mind when you read an explanation: what changed may come from the denoiser, not from the classifier."
)

# %% [markdown]
# ### The bridge to explanations: noise half-way, and draw again
#
# Take a *real* face, noise it to some level, and let the unguided chain bring it back. No target, no classifier.
#
# > **Predict first.** Order these by how much noise they survive: the mouth, the colour of the hair, the glasses, the hair style, the colour of the skin.

# %%
LEVELS = (10, 16, 22, 28, 34, 40)  # steps of 50
who = faces[[0, 1, 2, 3]] if MODE == "fast" else faces
redrawn = {"original": who}
for level in LEVELS:
    i, noise = level - 1, Noise(50 + level).bind(who)
    x_t = portrait.q_sample(who, i, noise.draw(who))
    redrawn[f"ᾱ = {float(portrait.alpha_bar[i]):.2f}"] = portrait.sample(x_t, noise, start=level)
plots.image_rows(redrawn, size=1.0, title="The same faces, redrawn from more and more noise")

# %%
others = (who[:, None] - faces[None]).abs().mean((2, 3, 4))
stranger = float(others[others > 0].mean())
moved = {
    label: metrics.average((x - who).abs().mean((1, 2, 3)) / stranger)
    for label, x in redrawn.items()
    if label != "original"
}
bars_ = [float(portrait.alpha_bar[level - 1]) for level in LEVELS]
display(
    plots.curve(
        {"": (bars_, list(moved.values()))},
        xlabel="alpha_bar at the start (right: little noise)",
        ylabel="distance from the original\n(1: a stranger's face)",
        hlines={"a stranger": 1.0},
    )
)
first, last = list(moved.values())[0], list(moved.values())[-1]
say(
    f"Redrawn from ᾱ = {bars_[0]:.2f} a face has moved {first.mean:.0%} of the way to a stranger; from ᾱ = {bars_[-1]:.2f}, {last.mean:.0%}."
)

# %% [markdown]
# And your order? A network that reads attributes (the *oracle*, which you will meet in notebook 02) compares each redrawn face with its original:

# %%
PARTS = {
    "mouth": ("smile",),
    "glasses": ("eyeglasses", "sunglasses"),
    "colour of the hair": ("black_hair", "brown_hair", "blond_hair", "red_hair", "gray_hair"),
    "hair style": ("hat", "bald", "long_hair", "bangs", "tied_hair", "curly_hair"),
    "colour of the skin": ("dark_skin",),
}
oracle = zoo.load("personas/oracle")
read = {label: oracle.attributes_of(x.clamp(-1, 1)) for label, x in redrawn.items()}
kept = []
for part, names in PARTS.items():
    columns = [oracle.attributes.index(name) for name in names]
    same = {label: (now == read["original"])[:, columns].all(1) for label, now in read.items()}
    kept.append(
        {"kept": part}
        | {label: f"{int(v.sum())} of {len(v)}" for label, v in same.items() if label != "original"}
    )
results.show_table(kept)

# %% [markdown]
# **What you see.** Little noise: the same person, every detail in place; *nothing could be changed here even if we wanted to*. Much noise: somebody else. Between the two lies a window in which the **person** survives while **details are drawn anew**.
#
# That window is where counterfactual explanations live. Start the reverse chain there, and at every step nudge it towards "the classifier says *smile*". The denoiser keeps it a face, the window keeps it *this* face, the nudge changes the answer. That is DiME, in three sentences, and
# only one question is open, the one from above: how does a clean classifier give a gradient for a noisy image? Turn to notebook 02.

# %% [markdown]
# ## Paper against measured
#
# What the papers say about the ingredients, against what this run measured. All rows are from the exact world, where neither a network nor a judge can be blamed; intervals are over repeated groups of samples. FID values of a paper and distances on the line
# are different yardsticks, so only the *direction* of such a claim is tested.

# %%
ddpm10, ddim10 = distance["DDPM (η = 1)"][1], distance["DDIM (η = 0)"][1]
claims = [
    {
        "claim": "ten steps: DDIM is nearer to the data than DDPM (η = 1)",
        "source": "Song et al. 2021, Table 1: FID 13.36 against 41.07 (CIFAR-10)",
        "measured": f"distance {ddim10} against {ddpm10}",
        "verdict": less(ddim10, ddpm10),
    },
    {
        "claim": "hundred steps: DDIM is still nearer",
        "source": "the same table: 4.16 against 5.78",
        "measured": f"distance {distance['DDIM (η = 0)'][4]} against {distance['DDPM (η = 1)'][4]}",
        "verdict": less(distance["DDIM (η = 0)"][4], distance["DDPM (η = 1)"][4]),
    },
    {
        "claim": "σ² = β is exact for unit Gaussian data, σ² = β̃ for one point",
        "source": "Ho et al. 2020, section 3.2",
        "measured": f"share ν = {float(nb01_tools.variance_share(fifty, 1.0)[25]):.4f} and {float(nb01_tools.variance_share(fifty, 0.0)[25]):.4f}",
        "verdict": near(float(nb01_tools.variance_share(fifty, 1.0)[25]), 1.0, 1e-3),
    },
    {
        "claim": "a learned variance matters when steps are few",
        "source": "Nichol and Dhariwal 2021, section 4",
        "measured": "error of the spread with ten steps: "
        f"{abs(ending['learned (exact ν)'][2] - TRUE_STD):.4f} (learned), {abs(ending['β̃ (small)'][2] - TRUE_STD):.4f} (β̃)",
        "verdict": less(
            abs(ending["learned (exact ν)"][2] - TRUE_STD), abs(ending["β̃ (small)"][2] - TRUE_STD)
        ),
    },
    {
        "claim": "stronger guidance lowers the variety",
        "source": "Ho and Salimans 2021, Fig. 2",
        "measured": f"spread {summary[2]['spread, drawn']} (w = 4) against {summary[0]['spread, drawn']} (w = 0)",
        "verdict": less(summary[2]["spread, drawn"], summary[0]["spread, drawn"]),
    },
    {
        "claim": "guidance with w samples from p(x|y) p(y|x)^w",
        "source": "Ho and Salimans 2021, section 3 (as the motivation)",
        "measured": f"spread {summary[1]['spread, drawn']} against {summary[1]['spread, Eq. 1.18']:.3f} (w = 1)",
        "verdict": near(summary[1]["spread, drawn"], summary[1]["spread, Eq. 1.18"], 0.01),
    },
    {
        "claim": "composition alone does not harmonise the filled part with the known one",
        "source": "Lugmayr et al. 2022, section 4.2",
        "measured": f"mean {seams[-1]['mean, drawn']} against {RHO * KNOWN:.3f}",
        "verdict": less(seams[-1]["mean, drawn"], RHO * KNOWN),
    },
]
results.show_table(claims)

# %% [markdown]
# ## What the released code does differently
#
# Small things, each of which has cost somebody a week.
#
# - **The network hears original timesteps.** In a respaced chain of 50, step 49 is told $t=999$, not 49. (See *Failure cases*.)
# - **Clipping.** Released samplers clip $\hat x_0$ to $[-1,1]$ before it enters Eq. 1.8, which no equation mentions. For DDIM the released ADM code then recomputes $\varepsilon$ from the clipped $\hat x_0$. Our steps do so with `clip=True`, the default; in the exact world we passed `clip=False`.
# - **The ends of the chain.** $\tilde\beta_1=0$ has no logarithm; the released ADM code replaces it by $\tilde\beta_2$, `diffusers` clamps it to $10^{-20}$.
# - **Spacing.** `diffusers` defaults to "leading" spacing, which does not reach the last timestep; ADM spreads the steps from end to end.
# - **Learned range after respacing.** Both bounds of Eq. 1.13 must be those of the *respaced* chain. Not every version of every library did so; the next cell checks yours.
# - **Guidance scale.** `guidance_scale` of `diffusers` is $1+w$.
#
# The next cell does not claim these things, it measures them on the installed version.

# %%
from diffusers import DDPMScheduler  # noqa: E402

theirs = DDPMScheduler(1000, variance_type="learned_range")
theirs.set_timesteps(10)
ours = Diffusion(None, betas, respacing="10")
say(
    f"Ten of a thousand steps. ADM (ours): `{respaced_timesteps(1000, '10')}`  \ndiffusers, default `{theirs.config.timestep_spacing}`: "
    f"`{sorted(theirs.timesteps.tolist())}`; `clip_sample={theirs.config.clip_sample}`"
)
t = int(theirs.timesteps[5])
upper = float(theirs._get_variance(t, predicted_variance=torch.ones(1)).exp())
respaced = float(1 - theirs.alphas_cumprod[t] / theirs.alphas_cumprod[t - 100])
assert abs(upper / respaced - 1) < 1e-3
say(
    f"The largest variance that a network may choose at t = {t}, with ten steps: {upper:.4f} in diffusers, {respaced:.4f} is the respaced β (they agree, asserted); "
    f"the original β of that timestep would be {float(theirs.betas[t]):.4f}."
)

# %% [markdown]
# So a "10-step" result of one library is not that of another: the kept timesteps differ, hence the chain. This course does its own respacing, and takes from `diffusers` the networks.
#
# ## Failure cases
#
# **The wrong clock.** Give the network the index in the respaced chain instead of the original timestep. Nothing crashes. But the network believes that the noise is faint from the beginning, takes what it sees for texture, and never decides what the picture is to be.

# %%
right = fifty_steps.sample(start[:8], Noise(0).bind(start[:8]))
by_index = Diffusion(
    lambda x, t: net(x, (fifty_steps.timesteps == t[:, None]).int().argmax(1)),
    betas,
    respacing="50",
    learned_range=False,
)
wrong = by_index.sample(start[:8], Noise(0).bind(start[:8]))
plots.image_rows({"told t = 0..999": right, "told i = 0..49": wrong}, size=1.1)

# %% [markdown]
# **Others that you met on the way**
# - *A poor denoiser with a deterministic sampler*: errors are carried to the end (the DDIM rows).
# - *A classifier that never saw noise*: confident and wrong where it matters (accuracy against $t$; the histogram of guided samples).
# - *Strong classifier-free guidance*: caricatures, little variety, and no distribution that you could name.
# - *Composition*: seams, even with a perfect network.
# - *Too little noise*: the reconstruction cannot change anything, so neither can an explanation. *Too much*: it is somebody else's explanation.
# - *Reading $\hat x_0$ as an image*: at high noise it is an average, and a classifier's answer to an average is not its answer to any image.

# %% [markdown]
# ## Exercises
# Ten were on the way. `hint("01.8")` and `solution("01.8")` help. Three more without a check, for a walk:
# - Train with the cosine schedule (`cosine_betas`) for the same time. Which samples look better, and which half of the chain improved?
# - Replace the target of Eq. 1.5 by $x_0$. Which noise levels does the loss now care about most? (Divide the two losses at equal error.)
# - Add RePaint's resampling to `inpaint`: after each step go one step forward again (Eq. 1.1) and repeat it, five times. Does the mean of the table reach the truth?

# %%
progress("01")

# %% [markdown]
# ## References
# - J. Ho, A. Jain, P. Abbeel. *Denoising Diffusion Probabilistic Models.* NeurIPS 2020. (Eq. 2, 4, 6, 7, 14, 15; Algorithms 1 and 2)
# - J. Song, C. Meng, S. Ermon. *Denoising Diffusion Implicit Models.* ICLR 2021. (Eq. 9, 12, 16; Table 1)
# - A. Nichol, P. Dhariwal. *Improved Denoising Diffusion Probabilistic Models.* ICML 2021. (Eq. 15, 17; section 4)
# - P. Dhariwal, A. Nichol. *Diffusion Models Beat GANs on Image Synthesis.* NeurIPS 2021. (Algorithm 1; Eq. 11)
# - T. Salimans, J. Ho. *Progressive Distillation for Fast Sampling of Diffusion Models.* ICLR 2022. (appendix D)
# - J. Ho, T. Salimans. *Classifier-Free Diffusion Guidance.* NeurIPS Workshop 2021, arXiv 2207.12598. (Eq. 6)
# - A. Lugmayr et al. *RePaint: Inpainting using Denoising Diffusion Probabilistic Models.* CVPR 2022. (Eq. 8)
# - A. Bradley, P. Nakkiran. *Classifier-Free Guidance is a Predictor-Corrector.* TMLR 2025, arXiv 2408.09000.
# - H. Xiao, K. Rasul, R. Vollgraf. *Fashion-MNIST.* arXiv 1708.07747.
#
# ## What next
# **02 · DiME**: the first counterfactual explanation by diffusion. You will need Eq. 1.3 (noise the face into the window), Eq. 1.15 (nudge the mean), and the warning under Eq. 1.7 (do not ask the classifier about an average).
