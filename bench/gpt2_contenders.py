"""The contenders of `bench.peers`: ours, CTranslate2's and transformers' model of one size.

    PYTHON -m bench.gpt2_contenders cogview-decode|cogview-train|ctranslate2|transformers SIZES

SIZES is JSON of the fields of `Sizes`. The first line of the output has the facts of a contender as
JSON. Every line that comes in says what to measure, such as "float32 4" for four rows, and the
answer has its seconds by the clock and of the processor, and the rate of the memory or of matrix
products that this process reaches right before, with its own library.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a contender needs is imported by its own process: those of the peers have no jax.


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model and of what is measured.

    Attributes:
        layers: of the model.
        width: of the model.
        heads: of attention.
        codes: the ids of the head when decoding.
        text: the ids of the table in training, beside the codes and the commands.
        text_length: text tokens of a training row.
        grid: rows and columns of the codes of a training row.
        context: tokens that are there before decoding is timed.
        count: tokens a row whose decoding is timed.
        top_k: 0 takes the likeliest token, another number samples among so many.
        threads: of each contender.
        product: rows and columns of the products that give the peak of training.
        read: bytes of the matrix that gives the memory's peak.
    """

    layers: int = 12
    width: int = 1024
    heads: int = 16
    codes: int = 8192
    text: int = 50_000
    text_length: int = 62
    grid: int = 32
    context: int = 64
    count: int = 32
    top_k: int = 0
    threads: int = 2
    product: int = 2048
    read: int = 2**29


#: Seconds by the clock and of all threads of the process.
Times = tuple[float, float]


@dataclass(frozen=True)
class Contender:
    """What a process measures.

    Attributes:
        measure: measures what a line asks for; may add facts to the answer.
        peak: does the work whose rate is the peak.
        peak_work: the FLOPs or bytes of that.
        facts: the first answer.
    """

    measure: Callable[[str], tuple[Times, dict[str, Any]]]
    peak: Callable[[], Any]
    peak_work: float
    facts: dict[str, Any]


def main() -> None:
    """Answers every line that comes in."""
    name, sizes = sys.argv[1], Sizes(**json.loads(sys.argv[2]))
    contender = CONTENDERS[name](sizes)
    contender.peak()
    print(json.dumps(contender.facts), flush=True)
    for line in sys.stdin:
        peaks = [timed(contender.peak) for _ in range(3)]
        times, facts = contender.measure(line.strip())
        reply = dict(zip(("seconds", "processor"), times, strict=True))
        rates = [contender.peak_work / min(each) for each in zip(*peaks, strict=True)]
        reply |= dict(zip(("peak", "processor_peak"), rates, strict=True))
        print(json.dumps(reply | facts), flush=True)


def timed(call: Callable[[], Any]) -> Times:
    """The times of a call."""
    began, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - processor


def cogview_decode(sizes: Sizes) -> Contender:
    """Our model, decoding; a line is a precision and a number of rows."""
    import jax
    import jax.numpy as jnp

    from bench.decode import bytes_a_step, prefilled, random_params, room_of_sampling
    from bench.int8 import quantized
    from cogview_jax.models.config import TransformerConfig
    from cogview_jax.models.transformer import Transformer
    from cogview_jax.runtime.precision import policy_of
    from cogview_jax.sampling.decode import decode
    from cogview_jax.sampling.filters import row_settings
    from cogview_jax.sampling.options import SamplingConfig
    from cogview_jax.tokenizers.vocabulary import Vocabulary

    vocabulary = Vocabulary(sizes.codes, sizes.text)
    config = TransformerConfig(sizes.layers, sizes.width, sizes.heads, dropout=0.0)
    models = {
        name: Transformer(
            config, vocabulary.size, positions(sizes), policy_of(name), vocabulary=vocabulary
        )
        for name in ("float32", "int8")
    }
    params = {"float32": random_params(models["float32"])}
    params["int8"] = quantized(params["float32"])
    sampling = SamplingConfig(temperature=float(sizes.top_k > 0), top_k=sizes.top_k)
    room = room_of_sampling(models["float32"], sizes.context, sizes.count)
    ready: dict[str, Any] = {}
    shared: dict[tuple[str, bool], Any] = {}

    def measure(line: str) -> tuple[Times, dict[str, Any]]:
        precision, rows = line.split()[0], int(line.split()[1])
        if line not in ready:
            model = models[precision]
            own, *rest = prefilled(model, params[precision], rows, sizes.context, room)
            # One row multiplies whole matrices, and several rows parts, which they all share.
            ready[line] = (shared.setdefault((precision, rows > 1), own), *rest)
        own, before, options = ready[line]
        settings = row_settings([sampling] * rows)
        # A call uses up the cache that it is given.
        sequences = jax.block_until_ready(jax.tree.map(jnp.copy, before))
        times = timed(
            lambda: jax.block_until_ready(
                decode(own, sequences, settings=settings, count=sizes.count, **options)
            )
        )
        work = bytes_a_step(models[precision], sizes.codes, rows, sizes.context)
        return per_token(times, sizes.count), {"work": work}

    # XLA reads each part with one thread.
    shape = (sizes.read // (4 * sizes.width * sizes.threads), sizes.width)
    matrices = [jax.random.uniform(jax.random.key(i), shape) for i in range(sizes.threads)]
    multiply = jax.jit(lambda parts, x: [part @ x for part in parts])
    x = jnp.ones(sizes.width)
    return Contender(
        measure,
        lambda: jax.block_until_ready(multiply(matrices, x)),
        sum(matrix.nbytes for matrix in matrices),
        {"versions": f"jax {jax.__version__}"},
    )


def cogview_train(sizes: Sizes) -> Contender:
    """Our model, a training step with its optimizer."""
    import jax
    import jax.numpy as jnp

    from bench.train_step import objective_of, random_row
    from cogview_jax.models.config import TransformerConfig
    from cogview_jax.runtime.mesh import MeshConfig, make_mesh
    from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
    from cogview_jax.tokenizers.vocabulary import Vocabulary
    from cogview_jax.training.optimizer import OptimizerConfig, make_optimizer, schedule
    from cogview_jax.training.state import make_state, state_shapes
    from cogview_jax.training.step import make_step

    layout = make_layout(
        LayoutConfig(text_length=sizes.text_length, grid=sizes.grid),
        Vocabulary(sizes.codes, sizes.text),
    )
    config = TransformerConfig(sizes.layers, sizes.width, sizes.heads, dropout=0.0, remat="none")
    objective = objective_of("blocks", config, layout)
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    step = make_step(objective, optimizer, schedule(OptimizerConfig(), 1000), seed=0)
    batch, mesh = random_row(layout), make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = make_state(objective, optimizer, state_shapes(objective, optimizer, mesh), 0)
        program = jax.jit(step, donate_argnums=0).lower(state, batch).compile()

    def measure(line: str) -> tuple[Times, dict[str, Any]]:
        def call() -> None:
            nonlocal state
            state, _ = jax.block_until_ready(program(state, batch))

        return timed(call), {"work": objective.flops_per_row}

    matrix, multiply = jnp.full((sizes.product, sizes.product), 1e-3), jax.jit(jnp.matmul)
    facts = {
        "versions": f"jax {jax.__version__}",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "tokens": objective.tokens_per_row,
        "vocabulary": layout.vocabulary.size,
    }
    return Contender(
        measure,
        lambda: jax.block_until_ready(multiply(matrix, matrix)),
        2 * sizes.product**3,
        facts,
    )


def ctranslate2(sizes: Sizes) -> Contender:
    """CTranslate2's GPT-2, decoding; a line is a precision and a number of rows.

    Its time for the prompt and one token, the less of right before and right after, is taken from
    that for more tokens.
    """
    torch = torch_with(sizes.threads)
    import ctranslate2 as library

    with tempfile.TemporaryDirectory() as folder:
        model = gpt2(sizes, sizes.codes)
        converted = str(Path(folder, "converted"))
        save_with_tokenizer(model, sizes.codes, folder)
        library.converters.TransformersConverter(folder).convert(converted)
        del model
        generators = {
            precision: library.Generator(
                converted,
                compute_type=precision,
                intra_threads=sizes.threads,
                inter_threads=1,
            )
            for precision in ("float32", "int8")
        }
    prompt = [str(1 + i % (sizes.codes - 1)) for i in range(sizes.context)]

    def generate(line: str, count: int) -> None:
        precision, rows = line.split()[0], int(line.split()[1])
        results = generators[precision].generate_batch(
            [prompt] * rows,
            max_length=count,
            min_length=count,
            sampling_topk=sizes.top_k or 1,
            include_prompt_in_result=False,
        )
        assert {len(result.sequences_ids[0]) for result in results} == {count}

    def measure(line: str) -> tuple[Times, dict[str, Any]]:
        before = timed(lambda: generate(line, 1))
        clock, processor = timed(lambda: generate(line, 1 + sizes.count))
        after = timed(lambda: generate(line, 1))
        prompt_clock, prompt_processor = map(min, zip(before, after, strict=True))
        return per_token((clock - prompt_clock, processor - prompt_processor), sizes.count), {}

    matrix, x = torch.rand(sizes.read // (4 * sizes.width), sizes.width), torch.rand(sizes.width)
    return Contender(
        measure,
        lambda: torch.mv(matrix, x),
        4 * matrix.numel(),
        {"versions": f"CTranslate2 {library.__version__}"},
    )


def transformers(sizes: Sizes) -> Contender:
    """transformers' GPT-2, a training step with AdamW; a line says "eager" or "compiled"."""
    torch = torch_with(sizes.threads)
    from transformers import __version__

    commands, multiple = 27, 128
    ids = -(-(sizes.codes + sizes.text + commands) // multiple) * multiple
    model = gpt2(sizes, ids, "sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, (0.9, 0.95), weight_decay=4e-2)
    tokens = torch.randint(sizes.codes, (1, positions(sizes)))
    forms = {"eager": model, "compiled": torch.compile(model)}

    def step(form: str) -> None:
        optimizer.zero_grad()
        forms[form](tokens, labels=tokens, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    matrix = torch.rand(sizes.product, sizes.product)
    facts = {
        "versions": f"transformers {__version__}, torch {torch.__version__}",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": tokens.numel(),
        "vocabulary": ids,
    }
    return Contender(
        lambda line: (timed(lambda: step(line)), {}),
        lambda: matrix @ matrix,
        2 * sizes.product**3,
        facts,
    )


def positions(sizes: Sizes) -> int:
    """Tokens of a training row: text and codes and three commands; the last is only predicted."""
    return sizes.text_length + sizes.grid**2 + 3


def per_token(times: Times, count: int) -> Times:
    """The times of one of `count` tokens."""
    clock, processor = times
    return clock / count, processor / count


def torch_with(threads: int) -> Any:
    """The module torch, told how many threads to use."""
    try:
        import torch
        import transformers as _  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f"{sys.executable}: {error}; expected the interpreter of python -m venv peer &&"
            " peer/bin/pip install torch transformers ctranslate2"
        ) from None
    torch.set_num_threads(threads)
    return torch


def gpt2(sizes: Sizes, ids: int, attention: str | None = None) -> Any:
    """transformers' GPT-2 without dropout, with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=ids,
        n_positions=positions(sizes),
        n_embd=sizes.width,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return GPT2LMHeadModel(config)


def save_with_tokenizer(model: Any, ids: int, folder: str) -> None:
    """Writes a model with a tokenizer whose words are numbers, which the converter asks for."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({str(i): i for i in range(ids)}, unk_token="0")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), bos_token="0", eos_token="0", unk_token="0"
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


CONTENDERS: dict[str, Callable[[Sizes], Contender]] = {
    "cogview-decode": cogview_decode,
    "cogview-train": cogview_train,
    "ctranslate2": ctranslate2,
    "transformers": transformers,
}

if __name__ == "__main__":
    main()
