"""The networks of torchvision, timm and transformers, from small configurations."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path

import torch

F64 = torch.float64


# A library that nobody holds takes its names away.
_KEPT: list[torch.library.Library] = []


@functools.cache
def torchvision_models():
    """Import torchvision's models, also beside a torch that its compiled operators do not fit."""
    (folder,) = importlib.util.find_spec("torchvision").submodule_search_locations
    try:
        torch.ops.load_library(next(Path(folder).glob("_C*")))
    except OSError:
        # Wheels for CUDA do not load beside torch for CPUs, and two names are missed at import.
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
    return importlib.import_module("torchvision.models")


def _images(net, rows=4, size=8):
    return net.double(), (torch.randn(rows, 3, size, size, dtype=F64),), {}


def _tokens(net, vocabulary, rows=5, length=5):
    net = net.double()
    return net, (), {"input_ids": torch.randint(vocabulary, (rows, length)), "use_cache": False}


def resnet(block="BasicBlock", layers=(1, 1, 1, 1), width=1):
    """Resnet18 has two such blocks in each stage, and 64 times as many channels."""
    models = torchvision_models()
    net = models.ResNet(getattr(models.resnet, block), list(layers), num_classes=3)
    return _images(_narrowed(net, 64 // width), 6, 32)


def _narrowed(net, by):
    """Divide the channels of all convolutions and their norms."""
    for name, child in list(net.named_modules()):
        if not name:
            continue
        parent, _, key = name.rpartition(".")
        owner = net.get_submodule(parent)
        if isinstance(child, torch.nn.Conv2d):
            m = child.in_channels if child.in_channels == 3 else child.in_channels // by
            new = torch.nn.Conv2d(
                m, child.out_channels // by, child.kernel_size, child.stride, child.padding,
                bias=False,
            )  # fmt: skip
        elif isinstance(child, torch.nn.BatchNorm2d):
            new = torch.nn.BatchNorm2d(child.num_features // by)
        elif isinstance(child, torch.nn.Linear):
            new = torch.nn.Linear(child.in_features // by, child.out_features)
        else:
            continue
        setattr(owner, key, new)
    return net


def mobilenet():
    models = torchvision_models()
    net = models.MobileNetV2(
        3,
        0.25,
        inverted_residual_setting=[[1, 16, 1, 1], [2, 16, 2, 1]],
        round_nearest=4,
        dropout=0,
    )
    block = models.mobilenetv2.Conv2dNormActivation
    net.features[-1] = block(4, 8, kernel_size=1, activation_layer=torch.nn.ReLU6)
    net.classifier[1] = torch.nn.Linear(8, 3)
    return _images(net)


def vit_torchvision():
    models = torchvision_models()
    net = models.VisionTransformer(8, 4, 2, 2, 8, 12, num_classes=3)
    torch.nn.init.normal_(net.heads.head.weight)
    return _images(net, 9)


def vit_timm(depth=2, **more):
    torchvision_models()
    import timm

    net = timm.models.VisionTransformer(
        8, 4, num_classes=3, embed_dim=8, depth=depth, num_heads=2, mlp_ratio=1.5, **more
    )
    return _images(net, 9)


def _transformers():
    torchvision_models()
    import transformers

    return transformers


def gpt2(layers=1, width=8, **more):
    t = _transformers()
    config = t.GPT2Config(
        vocab_size=11, n_positions=5, n_embd=width, n_layer=layers, n_head=2, n_inner=12,
        bos_token_id=1, eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **more,
    )  # fmt: skip
    return _tokens(t.GPT2LMHeadModel(config), 11)


def llama(kind="Llama", layers=1, width=8, **more):
    t = _transformers()
    config = getattr(t, f"{kind}Config")(
        vocab_size=11, hidden_size=width, intermediate_size=12, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=8,
        pad_token_id=None, bos_token_id=1, eos_token_id=2, **more,
    )  # fmt: skip
    return _tokens(getattr(t, f"{kind}ForCausalLM")(config), 11)


def bert():
    t = _transformers()
    config = t.BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=5, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, num_labels=3,
    )  # fmt: skip
    net = t.BertForSequenceClassification(config).double()
    call = {
        "input_ids": torch.randint(11, (9, 5)),
        "token_type_ids": torch.randint(2, (9, 5)),
    }
    return net, (), call


def t5():
    t = _transformers()
    config = t.T5Config(
        vocab_size=11, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_decoder_layers=1, num_heads=2,
        relative_attention_num_buckets=6, relative_attention_max_distance=8, dropout_rate=0.0,
        use_cache=False,
    )  # fmt: skip
    net = t.T5ForConditionalGeneration(config).double()
    call = {"input_ids": torch.randint(11, (9, 5)), "decoder_input_ids": torch.randint(11, (9, 4))}
    return net, (), call


def mamba():
    t = _transformers()
    config = t.MambaConfig(
        vocab_size=11, hidden_size=6, state_size=3, num_hidden_layers=1, expand=2, conv_kernel=3,
        time_step_rank=2, use_cache=False,
    )  # fmt: skip
    net = t.MambaForCausalLM(config).double()
    return net, (), {"input_ids": torch.randint(11, (9, 5)), "use_cache": False}


def causal(kind, **more):
    """Return a language model of transformers, with one layer of width 4."""
    t = _transformers()
    options = {
        "vocab_size": 11, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 8, "pad_token_id": None,
        "bos_token_id": 1, "eos_token_id": 2, **more,
    }  # fmt: skip
    config = getattr(t, f"{kind}Config")(**options)
    return _tokens(getattr(t, f"{kind}ForCausalLM")(config), 11)


def distilbert():
    t = _transformers()
    config = t.DistilBertConfig(
        vocab_size=11, max_position_embeddings=5, n_layers=1, n_heads=2, dim=4, hidden_dim=6,
        dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    net = t.DistilBertForMaskedLM(config).double()
    return net, (), {"input_ids": torch.randint(11, (5, 5))}


def gated_t5():
    t = _transformers()
    config = t.T5Config(
        vocab_size=11, d_model=4, d_kv=2, d_ff=6, num_layers=1, num_decoder_layers=1, num_heads=2,
        relative_attention_num_buckets=4, relative_attention_max_distance=8, dropout_rate=0.0,
        use_cache=False, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    net = t.T5ForConditionalGeneration(config).double()
    call = {"input_ids": torch.randint(11, (6, 5)), "decoder_input_ids": torch.randint(11, (6, 4))}
    return net, (), call


def opt():
    more = {"ffn_dim": 6, "word_embed_proj_dim": 4, "dropout": 0.0}
    return causal("OPT", **more)


def falcon_alibi():
    more = {"ffn_hidden_size": 6, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    return causal("Falcon", alibi=True, bias=True, parallel_attn=False, **more)


def marian():
    t = _transformers()
    config = t.MarianConfig(
        vocab_size=11, d_model=4, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=6, decoder_ffn_dim=6, max_position_embeddings=6,
        dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, use_cache=False,
    )  # fmt: skip
    call = {
        "input_ids": torch.randint(3, 11, (6, 5)),
        "decoder_input_ids": torch.randint(11, (6, 4)),
    }
    return t.MarianMTModel(config).double(), (), call


def beside(kind, **more):
    """Return a language model with attention and MLP beside each other, and enough tokens."""
    net, args, call = causal(kind, vocab_size=31, **more)
    return net, args, {**call, "input_ids": torch.randint(31, (6, 5))}


ZOO = {
    "resnet": resnet,
    "mobilenet": mobilenet,
    "vit": vit_torchvision,
    "timm vit": vit_timm,
    "timm vit, mean": lambda: vit_timm(1, class_token=False, global_pool="avg"),
    "gpt2": gpt2,
    "gpt2, two layers": lambda: gpt2(2),
    "gpt2, untied": lambda: gpt2(tie_word_embeddings=False),
    "llama": llama,
    "llama, two layers": lambda: llama(layers=2),
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "mistral": lambda: llama("Mistral", head_dim=4),
    "bert": bert,
    "t5": t5,
    "mamba": mamba,
    "qwen2": lambda: causal("Qwen2", num_key_value_heads=1, tie_word_embeddings=False),
    "qwen3": lambda: causal("Qwen3", num_key_value_heads=1, head_dim=2),
    "gemma2": lambda: causal("Gemma2", num_key_value_heads=1, head_dim=2),
    "opt": opt,
    "falcon, alibi": falcon_alibi,
    "distilbert": distilbert,
    "t5, gated": gated_t5,
    "marian": marian,
    "phi": lambda: beside("Phi", resid_pdrop=0.0),
    "gpt neox": lambda: beside("GPTNeoX"),
    "cohere": lambda: beside("Cohere", num_key_value_heads=1),
}
