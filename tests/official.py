"""The official fixtures' models, as the library reads them."""
import io, json, pickle, zipfile
import numpy as np, jax
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.transformer import Transformer
from cogview_jax.tokenizers.vocabulary import Vocabulary


def read(path):
    z = zipfile.ZipFile(path); root = z.namelist()[0].split("/")[0]
    class U(pickle.Unpickler):
        def find_class(self, m, n):
            if n == "_rebuild_tensor_v2": return lambda st, off, size, stride, *a: np.lib.stride_tricks.as_strided(st[off:], size, [s*4 for s in stride]).copy()
            return n if "Storage" in n else __import__("collections").OrderedDict
        def persistent_load(self, p): return np.frombuffer(z.read(f"{root}/data/{p[2]}"), np.float32)
    return U(io.BytesIO(z.read(f"{root}/data.pkl"))).load()


def vocabulary(fixtures):
    """The ids of the small models."""
    config = json.loads((fixtures / "config.json").read_text("utf-8"))["config"]
    return Vocabulary(config["n_img"], config["n_txt"])


def own_arithmetic(config):
    """The same sizes with a LayerNorm that is causal."""
    import dataclasses
    return dataclasses.replace(config, compat="none", pb_relax_norm=True)


def transformer(fixtures, name="transformer"):
    """(model, params): the weights in FIXTURES/name, with the release's arithmetic."""
    config = json.loads((fixtures / "config.json").read_text())["config"]
    it = (fixtures / name / "latest_checkpointed_iteration.txt").read_text().strip()
    m = read(fixtures / name / it / "mp_rank_00_model_states.pt")["module"]
    L = config["layers"]; w = config["hidden"]
    def st(f, tr=lambda x: x): return np.stack([tr(m[f"transformer.layers.{i}.{f}"]) for i in range(L)])
    T = lambda x: x.T
    norm = lambda n: {"scale": st(n+".weight"), "bias": st(n+".bias")}
    block = {"attention_in": norm("input_layernorm"), "attention_out": norm("third_layernorm"), "mlp_in": norm("post_attention_layernorm"), "mlp_out": norm("fourth_layernorm"),
      "attention": {"qkv": {"kernel": st("attention.query_key_value.weight", lambda x: x.T.reshape(w,3,w)), "bias": st("attention.query_key_value.bias", lambda x: x.reshape(3,w))}, "out": {"kernel": st("attention.dense.weight", T), "bias": st("attention.dense.bias")}},
      "mlp": {"up": {"kernel": st("mlp.dense_h_to_4h.weight",T), "bias": st("mlp.dense_h_to_4h.bias")}, "down": {"kernel": st("mlp.dense_4h_to_h.weight",T), "bias": st("mlp.dense_4h_to_h.bias")}}}
    params = {"word_embedding": m["word_embeddings.weight"], "position_embedding": m["transformer.position_embeddings.weight"], "blocks": {"block": block}, "final_norm": {"scale": m["transformer.final_layernorm.weight"], "bias": m["transformer.final_layernorm.bias"]}}
    c = TransformerConfig(layers=L, width=w, heads=config["heads"], dropout=0.1, pb_relax_norm=False, pb_relax_attention=False, embedding_gradient=1.0, compat="official", remat="none")
    V, P = params["word_embedding"].shape[0], params["position_embedding"].shape[0]
    return Transformer(c, V, P), params
