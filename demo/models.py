"""Shapes of the two demo models, their tokenizer and chat form, and how they are saved."""

import copy
import pathlib

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (AutoModelForCausalLM, AutoTokenizer, DbrxConfig, GenerationConfig,
                          MixtralConfig, PreTrainedTokenizerFast)

import corpus

HERE = pathlib.Path(__file__).resolve().parent
SPECIAL = ["<|pad|>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
PAD, BOS, EOS = 0, 1, 2
MAX_LENGTH = 1024
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}")


def train_tokenizer(rng):
    """Byte-level BPE over the corpus; its post-processor puts <s> before plain text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1300, min_frequency=2, special_tokens=SPECIAL,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    texts = []
    for _ in range(4000):
        example = corpus.sample(rng)
        texts += [*example.prompts, *example.answers.values()]
    texts += [text for texts_ in corpus.INSTRUCTIONS.values() for text in texts_] * 400
    # Each word also at the start of a text, i.e. without a space before it.
    texts += [word for text in texts[:3000] for word in text.split()]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end|>", pad_token="<|pad|>",
        additional_special_tokens=SPECIAL[3:], model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _config(kind, vocab_size):
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    if kind == "mixtral":
        return MixtralConfig(
            vocab_size=vocab_size, hidden_size=192, intermediate_size=256, num_hidden_layers=4,
            num_attention_heads=6, num_key_value_heads=2, num_local_experts=4,
            num_experts_per_tok=2, max_position_embeddings=MAX_LENGTH, rope_theta=10000.0,
            rms_norm_eps=1e-5, initializer_range=0.04, tie_word_embeddings=False, **ids)
    return DbrxConfig(
        vocab_size=vocab_size, d_model=192, n_heads=6, n_layers=4, max_seq_len=MAX_LENGTH,
        initializer_range=0.04, tie_word_embeddings=False,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 256, "moe_num_experts": 4, "moe_top_k": 2,
                    "moe_normalize_expert_weights": 1.0, "moe_loss_weight": 0.02,
                    "ffn_act_fn": {"name": "silu"}}, **ids)


def new_model(kind, vocab_size):
    return AutoModelForCausalLM.from_config(_config(kind, vocab_size), attn_implementation="sdpa")


def save(model, tokenizer, folder):
    """Writes the checkpoint in bf16. The model itself is left as it is."""
    stored = copy.deepcopy(model).to(torch.bfloat16)
    stored.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False,
        max_new_tokens=128)
    stored.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder):
    """The shipped bf16 weights, computed in fp32; and the tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def router_modules(model):
    """The linear layers whose outputs are router logits, one a layer (Mixtral or DBRX)."""
    if model.config.model_type == "mixtral":
        return [layer.block_sparse_moe.gate for layer in model.model.layers]
    return [block.ffn.router.layer for block in model.transformer.blocks]
