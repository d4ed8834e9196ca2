"""Generated files in the format of WikiText-103, and a generated tokenizer in that of GPT-2."""

import json

import numpy as np

PARTS = ("train", "valid", "test")


def article(rng, title, lines=6, words=40):
    """One article: a title, sections and text, separated by blank lines, each line between blanks."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    text = [f" = {title} = "]
    for number in range(lines):
        if number == 3:
            text += [" ", " = = Section = = "]
        said = ["".join(rng.choice(letters, rng.integers(1, 9))) for _ in range(words)]
        text += [" ", f" {' '.join(said)} <unk> , naïve @-@ <unk> . "]
    return " \n" + "\n".join(text) + "\n"


def write_wikitext(folder, articles=4):
    """Write the three files; returns the number of words of each, ends of lines included."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {}
    for seed, part in enumerate(PARTS):
        rng = np.random.default_rng(seed)
        text = "".join(article(rng, f"Article {part} {number}") for number in range(articles)) + " \n"
        (folder / f"wiki.{part}.tokens").write_text(text, "utf-8")
        words[part] = sum(len(line.split()) + 1 for line in text.splitlines())
    return words


def prepare_wikitext(folder, data_dir, shuffled=False):
    """The files of a folder as TFDS prepares them, without TensorFlow: an example per line, "" where one is blank."""
    import tensorflow_datasets as tfds

    class Wikitext(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Lines."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return self.dataset_info_from_configs(features=features, disable_shuffling=not shuffled)

        def _split_generators(self, manager):
            return {{"valid": "validation"}.get(part, part): self._generate_examples(part) for part in PARTS}

        def _generate_examples(self, part):
            lines = (folder / f"wiki.{part}.tokens").read_text("utf-8").splitlines(keepends=True)
            for number, line in enumerate(lines):
                yield number, {"text": line if line.strip() else ""}

    builder = Wikitext(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    return builder.data_dir


def gpt2_like_tokenizer():
    """Byte-level BPE with GPT-2's 50,257 ids, of which only a few are GPT-2's own; the merges are made up."""
    from tokenizers import pre_tokenizers

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())  # the order that GPT-2 has them in
    vocabulary = {character: number for number, character in enumerate(characters)}
    merges = []
    for word, number in (("Hello", 15496), ("Ġworld", 995)):
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocabulary[word[:end]] = number if end == len(word) else None
    free = iter(sorted(set(range(256, 50_256)) - {15496, 995}))
    for token in [token for token, number in vocabulary.items() if number is None]:
        vocabulary[token] = next(free)
    pairs = ((a, b) for a in characters for b in characters if a + b not in vocabulary)
    for number, (a, b) in zip(free, pairs, strict=False):
        vocabulary[a + b] = number
        merges.append((a, b))
    vocabulary["<|endoftext|>"] = 50_256
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"id": 50_256, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**end, "normalized": True, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "vocab": vocabulary, "merges": merges},
    }


def write_tokenizer(path, **changes):
    """Write the tokenizer, with some entries changed; returns the path."""
    path.write_text(json.dumps(gpt2_like_tokenizer() | changes), "utf-8")
    return path
