"""A small byte-level BPE with OLMo's special tokens, for models that are trained from scratch."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

EOS, PAD = "<|endoftext|>", "<|pad|>"
FRAMES = ("<|im_start|>", "<|im_end|>")
# Not "special": decoding with skip_special_tokens must keep a function call's tags.
FUNCTION_TAGS = ("<functions>", "</functions>", "<function_calls>", "</function_calls>")


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, out_dir: Path, chat_template: str
) -> PreTrainedTokenizerFast:
    """Learn merges from the texts and save a folder that AutoTokenizer loads.

    Digits stay single, so that numbers of any length are spelled alike. The function tags take the
    last ids whether or not the texts hold them: tool use finds them there, untrained.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(FUNCTION_TAGS),
        special_tokens=[EOS, PAD, *FRAMES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(
        [AddedToken(tag, special=False, normalized=False) for tag in FUNCTION_TAGS]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(FRAMES),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],  # OLMo has no token types
        chat_template=chat_template,
    )
    wrapped.save_pretrained(out_dir)
    return wrapped
