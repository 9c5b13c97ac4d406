"""TIME: words that are learned alone, the recorded counterfactual, retries, and black boxes of which only labels come out."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import pytest
import torch
from latents import dit, scheduler, stable_diffusion
from test_edict import Network

from cfx_lib import TIME, zoo
from cfx_lib.methods.time import BlackBox, Distillation, Tokens
from cfx_lib.methods.words import embed, lay_out
from cfx_lib.types import CFResult

PROMPTS = {"context_prompt": "a {context} photo", "class_prompt": "a {context} photo of a {class}"}
EXACT = dict(rtol=1e-6, atol=1e-7)


def latent(**parts):
    return zoo.latent_diffusion(stable_diffusion(**parts))


@pytest.fixture(scope="module")
def model():
    return latent()


def faces(n=6, seed=0):
    """Smooth random images (n,3,16,16) in [-1,1] of many brightnesses."""
    small = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(small, scale_factor=4.0).clamp(-1, 1)


def some_tokens(name="toy", width=8, seed=0):
    source = torch.Generator().manual_seed(seed)
    context, *classes = (torch.randn(k, width, generator=source) for k in (2, 2, 1))
    return Tokens(name, dict(enumerate(classes)), context, **PROMPTS)


def bright(x):
    return (x.mean((1, 2, 3)) > 0).long()


def coin(x):
    """A label for each image that looks random, from its bytes."""
    return (x * 1e4).round().sum((1, 2, 3)).long() % 2


def explain(model, predict=bright, x=None, target=None, tokens=None, **settings):
    x = faces() if x is None else x
    target = 1 - predict(x) if target is None else target
    settings = {"steps": 10, "attempts": ((4, 2.0), (6, 3.0)), **settings}
    return TIME(model, predict, tokens or some_tokens(), **settings).explain(x, target, progress=False)


# -------------------------------------------------------------------------------------------------- the recorded run


class Recorded:
    """The stub network as a text-to-image model with the identity as its autoencoder."""

    kind, prediction_type, name, factor, image_channels, image_size = "text", "epsilon", "stub", 1, 4, 8

    def __init__(self):
        self.network = Network()
        self.alpha_bar = self.network["alphas_cumprod"]

    def encode(self, x):
        return self.network["x"]

    def decode(self, z):
        return z

    def eps(self, z, t, condition):
        return self.network.noise(z, t, condition)

    def unconditional(self, n):
        return self.network["uncond"].expand(n, -1)


class RecordedTokens:
    def check(self, model, classes=None):
        pass

    def conditions(self, model, classes):
        return torch.cat([model.network[("prompt_source", "prompt_target")[k]] for k in classes.tolist()])


@pytest.mark.parametrize("run, guidance", [("time_negative", "negative"), ("time_uncond", "classifier-free")])
def test_the_counterfactual_agrees_with_the_recorded_reference(run, guidance):
    model, x, target = Recorded(), torch.zeros(1, 4, 8, 8), torch.tensor([1])
    method = TIME(model, lambda x: (x.abs().sum((1, 2, 3)) > 0).long(), RecordedTokens(), 20, ((20, 2.0),), guidance=guidance)  # fmt: skip
    result = method.explain(x, target, record=True, progress=False)
    torch.testing.assert_close(result.extra["latent"], model.network[f"{run}.counterfactual"], **EXACT)
    assert [s.t for s in result.steps] == model.network[f"{run}.timesteps_denoise"].tolist()
    assert result.cost.denoiser_calls == 8 * 20 and result.flipped.all()
    if run == "time_negative":
        expected = model.network[f"{run}.counterfactual.pair_before_step"]
        torch.testing.assert_close(torch.stack([s.z for s in result.steps]), expected[:, 0], **EXACT)
        away = TIME(model, method.predict, RecordedTokens(), 20, ((20, 2.0),), inversion="ddim")
        assert away.explain(x, target, progress=False).cost.denoiser_calls == 4 * 20


# -------------------------------------------------------------------------------------------------- explaining


def test_only_images_that_have_not_flipped_are_tried_again(model):
    x = faces(12)
    result = explain(model, coin, x, attempts=((3, 2.0), (4, 3.0), (5, 4.0)))
    attempt, label = result.extra["attempt"], result.extra["label"]
    assert set(attempt.tolist()) == {0, 1, 2} and torch.equal(result.flipped, label == result.target)
    assert torch.equal(result.flipped | (attempt == 2), torch.ones(12, dtype=torch.bool))
    assert torch.equal(result.extra["tau"], attempt + 3) and torch.equal(
        result.extra["w"], attempt.double() + 2
    )
    tried = [12, int((attempt > 0).sum()), int((attempt > 1).sum())]
    assert result.cost.denoiser_calls == 8 * sum(n * tau for n, tau in zip(tried, (3, 4, 5)))
    assert result.cost.classifier_calls == 12 + 8 + sum(tried)  # eight are asked for twice
    assert torch.equal(coin(result.x_cf), label) and torch.equal(coin(x), result.extra["source"])


def test_an_explanation_does_not_depend_on_its_batch(model):
    x = faces(4, seed=3)
    together = explain(model, x=x, target=1 - bright(x))
    alone = explain(model, x=x[2:3], target=1 - bright(x[2:3]))
    torch.testing.assert_close(together.x_cf[2:3], alone.x_cf, rtol=0, atol=1e-5)
    assert torch.equal(together.extra["attempt"][2:3], alone.extra["attempt"])
    again = TIME(model, bright, some_tokens(), steps=10, attempts=((4, 2.0), (6, 3.0)))
    assert torch.equal(again.explain(x, 1 - bright(x), seed=5, progress=False).x_cf, together.x_cf)


def test_the_result_says_labels_and_no_logits_and_can_be_saved(model, tmp_path):
    result = explain(model)
    assert result.logits_before is None and result.logits_after is None
    assert result.x_cf.dtype == torch.float32 and result.x_cf.abs().max() <= 1
    expected = model.decode(model.encode(faces())).clamp(-1, 1)
    torch.testing.assert_close(result.extra["reconstruction"], expected)
    loaded = CFResult.load(result.save(tmp_path))
    assert torch.equal(loaded.extra["label"], result.extra["label"]) and loaded.logits_after is None


def test_with_the_same_words_both_ways_only_the_autoencoder_changes_the_image(model):
    x = faces()
    with pytest.warns(UserWarning, match="already given their target class"):
        result = explain(model, target=bright(x), x=x)
    torch.testing.assert_close(result.x_cf, result.extra["reconstruction"], rtol=0, atol=1e-5)
    assert result.extra["already"].all()


def test_guidance_inversion_and_level_shift_are_really_used(model):
    x, settings = faces(2), {"attempts": ((4, 3.0),)}
    ways = [{}, {"guidance": "classifier-free"}, {"inversion": "ddim"}, {"exact": False}, {"leapfrog": True}, {"p": 0.8}]  # fmt: skip
    results = [explain(model, x=x, **settings, **way).x_cf for way in ways]
    assert all((results[0] - other).abs().max() > 1e-5 for other in results[1:])


def test_recorded_steps_change_nothing_and_say_where_they_belong(model):
    x = faces(5)
    method = TIME(model, coin, some_tokens(), steps=10, attempts=((3, 2.0), (4, 3.0)))
    plain, result = (method.explain(x, 1 - coin(x), record=r, progress=False) for r in (False, True))
    assert torch.equal(plain.x_cf, result.x_cf) and plain.cost.denoiser_calls == result.cost.denoiser_calls
    first = [s for s in result.steps if s.attempt == 0]
    assert [s.i for s in first] == [2, 1, 0] and [s.t for s in first] == [20, 10, 0]
    again = [s for s in result.steps if s.attempt == 1]
    assert all(s.rows.tolist() == (result.extra["attempt"] == 1).nonzero().flatten().tolist() for s in again)
    assert all(s.x_t.shape[1:] == x.shape[1:] and s.probability is None for s in result.steps)


def test_the_model_is_left_as_it_was():
    model = latent().train()
    model.network.requires_grad_(True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    explain(model, x=faces(1))
    assert model.training and all(p.requires_grad for p in model.network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(TIME.PRESETS))
def test_presets_are_the_theses(name):
    method = TIME.preset(name, None, bright, some_tokens())
    if name.startswith(("paper", "released")):
        assert (method.steps, method.p, method.leapfrog, method.guidance) == (50, 0.93, False, "negative")
        assert method.attempts[0] == ((25, 3.0) if name.endswith("smile") else (30, 4.0))
        assert method.exact == name.startswith("paper")
    assert TIME(None, bright, some_tokens()).attempts == TIME.PRESETS["paper/celebahq/smile"]["attempts"]


# -------------------------------------------------------------------------------------------------- learning words


def learner(model, **settings):
    return Distillation(model, bright, **{"iterations": 6, "batch": 4, "vectors": 2, **PROMPTS, **settings})


def test_only_the_new_vectors_change_even_under_weight_decay():
    model = latent().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    vocabulary = dict(model.pipeline.tokenizer.get_vocab())
    tokens = learner(model, learning_rate=0.1, weight_decay=0.5).learn(faces(20), progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.pipeline.tokenizer.get_vocab() == vocabulary and model.training
    assert not model.text_encoder.get_input_embeddings()._forward_hooks
    assert all(p.grad is None for p in model.parameters())
    start = learner(model, learning_rate=0.0).learn(faces(20), progress=False)
    for word, vectors in tokens.words.items():
        assert vectors.shape == (2, 8) and (vectors - start.words[word]).abs().max() > 0.05
        assert not vectors.requires_grad and len(tokens.curves[word[6:-1]]) == 6


def test_learned_vectors_fit_their_images_better(model):
    """The loss of Eq. 5.5 on draws that were not learned from."""
    x, method = faces(32), learner(model, iterations=25, batch=8, learning_rate=0.1)
    first = learner(model, learning_rate=0.0).learn(x, progress=False)
    tokens = method.learn(x, progress=False)

    def loss(tokens, k):
        source, z = torch.Generator().manual_seed(9), model.encode(x[bright(x) == k]).repeat(12, 1, 1, 1)
        t = torch.randint(100, (len(z),), generator=source)
        noise, alpha = (
            torch.randn(z.shape, generator=source),
            model.alpha_bar[t].float()[:, None, None, None],
        )
        condition = tokens.conditions(model, torch.full((len(z),), k))
        eps = model.eps(alpha.sqrt() * z + (1 - alpha).sqrt() * noise, t, condition)
        return (eps - noise).square().mean().item()

    with torch.no_grad():
        assert all(loss(tokens, k) < loss(first, k) - 1e-4 for k in (0, 1))


def test_a_word_depends_on_its_own_images_and_the_context_only(model):
    both = learner(model).learn(faces(20), progress=False)
    one = learner(model).learn(faces(20), [1], name="other", progress=False)
    for a, b in ((both.classes[1], one.classes[1]), (both.context, one.context)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert list(one.classes) == [1] and one.facts["labels"] == {"1": int(bright(faces(20)).sum())}
    reused = learner(model).learn(faces(20), [1], name="third", context=both, progress=False)
    assert torch.equal(reused.context, both.context)
    torch.testing.assert_close(reused.classes[1], both.classes[1], rtol=0, atol=1e-5)
    other = learner(model).learn(faces(20), [1], seed=1, progress=False)
    assert (other.context - one.context).abs().max() > 1e-3


def test_bytes_parts_and_given_first_words(model):
    x = faces(20)
    whole = learner(model, batch=6, iterations=3).learn(x, progress=False)
    parts = learner(model, batch=6, iterations=3, part=4).learn(x, progress=False)
    torch.testing.assert_close(parts.classes[0], whole.classes[0], rtol=0, atol=1e-4)
    as_bytes = ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    rounded = learner(model, learning_rate=0.0, init={0: "sad", "context": "a person"})
    tokens = rounded.learn(as_bytes.numpy(), progress=False)
    table, ids = (
        model.text_encoder.get_input_embeddings().weight,
        model.pipeline.tokenizer("sad a person").input_ids,
    )
    assert torch.equal(tokens.classes[0], table[[ids[1]] * 2]) and torch.equal(
        tokens.context, table[ids[2:4]]
    )


def test_without_a_context_only_the_classes_are_learned(model):
    tokens = learner(model, class_prompt="a photo of a {class}").learn(faces(20), progress=False)
    assert tokens.context is None and list(tokens.words) == ["<time-0>", "<time-1>"]
    assert tokens.prompt(1, expanded=True) == "a photo of a <time-1> <time-1>_1"


def test_what_diffusers_loads_gives_the_same_condition(model, tmp_path):
    tokens = learner(model).learn(faces(20), name="smile", progress=False)
    folder = tokens.save(tmp_path / "tokens")
    loaded = Tokens.load(folder)
    assert all(torch.equal(v, loaded.words[word]) for word, v in tokens.words.items())
    assert (loaded.name, loaded.class_prompt, loaded.facts) == (
        tokens.name,
        tokens.class_prompt,
        tokens.facts,
    )
    fresh = latent()
    old = fresh.text_encoder.get_input_embeddings().weight.clone()
    for file in ("context", "class-0", "class-1"):
        fresh.pipeline.load_textual_inversion(folder, weight_name=f"{file}.safetensors")
    assert torch.equal(fresh.text_encoder.get_input_embeddings().weight[: len(old)], old)
    for k in (0, 1):
        text = fresh.pipeline.maybe_convert_prompt(tokens.prompt(k), fresh.pipeline.tokenizer)
        assert text == tokens.prompt(k, expanded=True)
        theirs, ours = fresh.condition([text]), tokens.conditions(model, torch.tensor([k]))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    tokens.check(fresh)  # the same vectors
    with pytest.raises(ValueError, match="<smile-context> is in the vocabulary of .* already"):
        some_tokens("smile").check(fresh)


def test_a_text_without_learned_words_is_encoded_as_by_the_model(model):
    text = "a photo of a sad person."
    torch.testing.assert_close(
        embed(model, lay_out(model, text, {}), {}), model.condition([text]), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch": 15}, r"gives the class \d to \d+ of 20 images; a batch takes 15"),
        ({"class_prompt": "a {context} snapshot of a {class}"}, "words that .* does not know: 'snapshot'"),
        ({"vectors": 4}, "has 14 tokens with its start and end; .* takes at most 12"),
        ({"init": {0: "happy"}}, "does not know: 'happy'"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_learning(model, change, message):
    with pytest.raises(ValueError, match=message):
        learner(model, **change).learn(faces(20), progress=False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"class_prompt": "a photo"}, r"expected a text with \{class\} once"),
        ({"context_prompt": "a photo"}, r"expected a text with \{context\} once"),
        ({"vectors": 0}, "vectors = 0; expected a whole number, at least 1"),
        ({"part": 0}, "part = 0"),
        ({"learning_rate": -1.0}, "learning_rate = -1.0"),
    ],
)
def test_settings_of_learning_that_make_no_sense_are_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        learner(model, **change)


def test_tokens_in_the_vocabulary_are_refused_before_learning():
    model = latent()
    model.pipeline.tokenizer.add_tokens(["<smile-1>"])
    with pytest.raises(
        ValueError, match="<smile-1> is in the vocabulary of .* already; give these tokens another name"
    ):
        learner(model).learn(faces(20), name="smile", progress=False)
    with pytest.raises(ValueError, match="name = 'My smile'; expected lower-case"):
        learner(model).learn(faces(20), name="My smile", progress=False)


# -------------------------------------------------------------------------------------------------- black boxes


class Sealed:
    """A classifier of which nothing can be had but the labels of images."""

    def __call__(self, x):
        return bright(x)

    def __getattribute__(self, name):
        raise RuntimeError(f"the black box was asked for {name}")


def test_nothing_of_the_black_box_is_touched(model):
    x = faces(20)
    tokens = Distillation(model, Sealed(), iterations=2, batch=2, **PROMPTS, vectors=2).learn(
        x, progress=False
    )
    method, x = TIME(model, Sealed(), tokens, steps=10, attempts=((2, 1.0),)), x[:3]
    assert torch.equal(method.explain(x, 1 - bright(x), progress=False).extra["source"], bright(x)) and repr(
        method
    )


def test_calls_are_batched_counted_and_kept():
    seen = []

    def predict(images):
        seen.append(len(images))
        images += 1  # its own copy
        return bright(images - 1).tolist()

    box, x = BlackBox(predict, batch=4), faces(10)
    assert torch.equal(box(x), bright(faces(10))) and torch.equal(x, faces(10))
    assert seen == [4, 4, 4, 2] and (box.images, box.calls) == (14, 4)  # the first batch again, reversed
    assert torch.equal(box(x[[3, 3, 1]]), bright(x[[3, 3, 1]])) and box.calls == 4
    box(torch.cat([x[:2], faces(2, seed=1), faces(2, seed=1)]))
    assert seen[4:] == [2] and "16 images in 5 calls" in repr(box)


def test_a_black_box_that_is_shared_keeps_its_answers(model):
    box, x = BlackBox(bright), faces()
    first, second = (explain(model, box, x, 1 - bright(x)) for _ in range(2))
    assert first.cost.classifier_calls > 0 and second.cost.classifier_calls == 0
    assert second.extra["predict_calls"] == 0 and torch.equal(first.x_cf, second.x_cf)


def test_both_layouts(model):
    def predict(images):
        assert images.dtype == np.uint8 and images.shape[1:] == (16, 16, 3)
        return (images.mean((1, 2, 3)) > 127.5).astype(np.int32)

    x = faces()
    result = explain(model, predict, x, 1 - bright(x), takes="uint8")
    levels = (result.x_cf + 1) * 127.5
    torch.testing.assert_close(
        levels, levels.round(), rtol=0, atol=1e-3
    )  # what the black box saw is what is shown
    as_bytes = levels.round().byte().permute(0, 2, 3, 1).numpy()
    assert predict(as_bytes).tolist() == result.extra["label"].tolist()


WRONG = [
    (lambda x: torch.rand(len(x), 2).softmax(1), r"float32 of shape \(6, 2\).*look like probabilities.*argmax\(1\)"),
    (lambda x: torch.rand(len(x)), r"float32 of shape \(6,\).*probabilities.*threshold"),
    (lambda x: np.eye(2, dtype=int)[bright(x).numpy()], r"int64 of shape \(6, 2\).*argmax\(1\)"),
    (lambda x: bright(x)[:-1], r"returned shape \(5,\).*should return 6 whole numbers"),
    (lambda x: 1, r"returned shape \(\)"),
    (lambda x: bright(x)[:, None], r"shape \(6, 1\).*answer.reshape\(-1\)"),
    (lambda x: ["cat"] * len(x), r"a list of <U3: \['cat'.*Number the classes"),
    (lambda x: None, "returned a NoneType of object"),
    (lambda x: bright(x) - 1, "returned the label -1"),
    (lambda x: [[1], [1, 2]], "a list that is no array"),
    (lambda x: x.reshape(len(x), 7), "predict raised RuntimeError: shape .*It was given 6 images, a tensor"),
    (lambda x: x.no_such_thing, "predict raised AttributeError.*takes='uint8'"),
]  # fmt: skip


@pytest.mark.parametrize("predict, message", WRONG)
def test_answers_that_are_no_labels_are_refused_with_what_was_seen(model, predict, message):
    with pytest.raises(ValueError, match=message):
        explain(model, predict, target=torch.zeros(6, dtype=torch.long))


def test_a_black_box_that_changes_its_mind_is_refused(model):
    calls = []

    def moody(x):
        calls.append(len(x))
        return (bright(x) + len(calls)) % 2

    with pytest.raises(
        ValueError, match=r"not deterministic: it gave the same image \(number 0\) the label \d, then"
    ):
        explain(model, moody, target=torch.zeros(6, dtype=torch.long))
    with pytest.raises(ValueError, match="in another order of the batch"):
        explain(model, lambda x: torch.arange(len(x)), target=torch.zeros(6, dtype=torch.long))


def test_a_torch_classifier_behind_predict(model):
    class Net(torch.nn.Linear):
        def predict(self, x):
            return self(x.flatten(1)).argmax(1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(768, 2)
    x = faces()
    result = explain(model, net.predict, x, 1 - net.predict(x))
    assert torch.equal(net.predict(result.x_cf), result.extra["label"]) and net.weight.requires_grad


def check_bytes(model, predict):
    """Distil and explain a black box that takes bytes."""
    x = faces(12)
    tokens = Distillation(model, predict, 2, 1, batch=2, takes="uint8", **PROMPTS).learn(x, progress=False)
    box = BlackBox(predict, "uint8")
    result = explain(model, box, x[:4], 1 - box(x[:4]), tokens)
    assert result.extra["label"].tolist() == box(result.x_cf).tolist() and set(tokens.classes) == {0, 1}


def test_a_scikit_learn_model_on_pixels(model):
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    x = faces(40, seed=5)
    pixels = ((x + 1) * 127.5).round().permute(0, 2, 3, 1).flatten(1).numpy()
    fitted = linear.LogisticRegression(max_iter=50).fit(pixels / 255, bright(x).numpy())
    check_bytes(model, lambda images: fitted.predict(images.reshape(len(images), -1) / 255))


def test_an_onnx_file_through_onnxruntime(model, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx, which writes the file, is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    helper, kind = onnx.helper, onnx.TensorProto
    weight = np.stack([np.zeros(768), np.full(768, 1 / 768)], 1).astype(np.float32)
    bias = np.array([127.5, 0], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=kind.FLOAT),
            helper.make_node("Flatten", ["floats"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
            helper.make_node("ArgMax", ["logits"], ["labels"], axis=1, keepdims=0),
        ],
        "brightness",
        [helper.make_tensor_value_info("images", kind.UINT8, ["n", 16, 16, 3])],
        [helper.make_tensor_value_info("labels", kind.INT64, ["n"])],
        [onnx.numpy_helper.from_array(weight, "weight"), onnx.numpy_helper.from_array(bias, "bias")],
    )
    file = tmp_path / "brightness.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    check_bytes(model, lambda images: session.run(None, {"images": images})[0])


class Service(BaseHTTPRequestHandler):
    def do_POST(self):
        shape = tuple(json.loads(self.headers["X-Shape"]))
        images = np.frombuffer(self.rfile.read(int(self.headers["Content-Length"])), np.uint8).reshape(shape)
        answer = json.dumps((images.mean((1, 2, 3)) > 127.5).astype(int).tolist()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


def test_a_web_service(model):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    open_url = build_opener(ProxyHandler({})).open

    def predict(images):
        headers = {"X-Shape": json.dumps(images.shape)}
        request = Request(f"http://127.0.0.1:{server.server_port}", images.tobytes(), headers)
        with open_url(request, timeout=10) as answer:
            return json.load(answer)

    try:
        check_bytes(model, predict)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    with pytest.raises(ValueError, match="predict raised URLError"):
        BlackBox(predict, "uint8")(faces(1))


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "x, target, message",
    [
        (faces()[0], torch.zeros(6).long(), r"shape \(3, 16, 16\); expected a float32 tensor"),
        (faces() * 9, torch.zeros(6).long(), r"expected \[-1, 1\]"),
        (faces(), torch.zeros(6), "dtype torch.float32"),
        (faces(), torch.full((6,), 2), r"tokens toy have the classes \[0, 1\]; \[2\] are needed"),
        (faces()[..., :15], torch.zeros(6).long(), "sides divisible by 2"),
    ],
)
def test_wrong_arguments_are_refused_before_the_black_box_is_asked(model, x, target, message):
    def never(images):
        raise AssertionError("the black box was asked")

    with pytest.raises(ValueError, match=message):
        explain(model, never, x, target)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"attempts": ()}, r"attempts = \(\); expected pairs"),
        ({"attempts": ((11, 2.0),)}, "1 <= tau <= steps = 10"),
        ({"attempts": ((5, -1.0),)}, "w >= 0"),
        ({"p": 1.5}, "0 < p <= 1"),
        ({"guidance": "none"}, "guidance = 'none'; expected one of"),
        ({"inversion": "null"}, "inversion = 'null'"),
        ({"takes": "jpeg"}, "takes = 'jpeg'; expected one of: 'float', 'uint8'"),
        ({"batch": 0}, "batch = 0"),
        ({"steps": 101, "attempts": ((1, 1.0),)}, "steps = 101, but the model was trained with 100"),
        ({"tokens": some_tokens(width=9)}, r"vectors of shape \(2, 9\); .* takes \(k, 8\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        explain(model, **change)


def test_something_that_cannot_be_called_is_no_black_box(model):
    with pytest.raises(ValueError, match="predict is a list; expected something called with images"):
        TIME(model, [0, 1], some_tokens())


def test_other_models_are_refused():
    velocity = latent(scheduler=scheduler(prediction_type="v_prediction"))
    with pytest.raises(ValueError, match="prediction_type = 'v_prediction'; expected 'epsilon'"):
        explain(velocity)
    with pytest.raises(ValueError, match="conditioned on 'class'; expected a text-to-image model"):
        explain(zoo.latent_diffusion(dit()))
    with pytest.raises(ValueError, match="prediction_type = 'v_prediction'"):
        learner(velocity).learn(faces(20), progress=False)


def test_an_odd_number_of_steps_is_as_exact(model):
    x = faces(2)
    for settings in (
        {"steps": 7, "attempts": ((5, 2.0),)},
        {"steps": 7, "attempts": ((5, 2.0),), "leapfrog": True},
    ):
        with pytest.warns(UserWarning, match="already"):
            result = explain(model, x=x, target=bright(x), **settings)
        torch.testing.assert_close(result.extra["latent"].float(), model.encode(x), rtol=0, atol=1e-5)


def test_damaged_tokens_are_refused(tmp_path):
    folder = some_tokens().save(tmp_path)
    (folder / "class-1.safetensors").replace(folder / "class-0.safetensors")
    with pytest.raises(ValueError, match="holds .*<toy-1>.*; expected the word <toy-0>"):
        Tokens.load(folder)
    with pytest.raises(FileNotFoundError):
        Tokens.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"tokens toy have the classes \[0, 1\]; not 5"):
        some_tokens().prompt(5)
    with pytest.raises(ValueError, match="asks for a context, but context is None"):
        Tokens("toy", some_tokens().classes)
