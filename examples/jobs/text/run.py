"""Texts as a job: token ids as Parquet, a sentence encoder as TorchScript, `fusum run`, a check.

`make jobs` runs this file; everything it makes goes to demo_out/similar/.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from fusum.attr import LayerIntegratedGradients

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # of examples/text.py
from text import Similarity, encoder

OUT = Path("demo_out/similar")
QUESTION = "How do I reset my password?"
SENTENCES = (
    "I forgot my login and cannot open my account.",
    "Click the link in the e-mail to choose a new password.",
    "Your password must have at least twelve characters, one of them a digit.",
    "The bank raised its interest rates.",
    "Press the button for ten seconds to restart the router.",
    "We could not verify your identity.",
    "A man is playing a guitar on stage.",
    "Change your credentials in the settings, under security, and sign in again on every device that you use.",
)


def write_rows(path: Path, tokens: list[list[int]], question: Tensor) -> None:
    """A row for each sentence: its text, its token ids, and the question's vector."""
    vectors = pa.FixedSizeListArray.from_arrays(question.repeat(len(tokens)).numpy(), len(question))
    pq.write_table(pa.table({"sentence": list(SENTENCES), "tokens": tokens, "question": vectors}), path)


def load(tokenizer: Any, model: Similarity) -> tuple[list[list[int]], Tensor]:
    """The sentences' token ids, and the question's vector."""
    read = tokenizer([QUESTION], return_tensors="pt")
    with torch.no_grad():
        return tokenizer(list(SENTENCES))["input_ids"], model.vectors(read["input_ids"], read["attention_mask"])[0]


def direct(model: Similarity, tokens: list[int], question: Tensor) -> Tensor:
    """The scores of one sentence's tokens, by the class itself."""
    ids = torch.tensor([tokens])
    extra = (torch.ones_like(ids), question[None])
    method = LayerIntegratedGradients(model, model.bert.embeddings)
    return method.attribute(ids, 0, additional_forward_args=extra, n_steps=20).sum(-1)[0].detach()


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")  # tracing warns of each shape that it takes for a constant
    print(f"1. Writing {OUT / 'rows.parquet'}, saving all-MiniLM-L6-v2 as {OUT / 'model.pt'}")
    tokenizer, model = encoder()
    tokens, question = load(tokenizer, model)
    write_rows(OUT / "rows.parquet", tokens, question)
    ids = torch.tensor([tokens[0], tokens[0]])
    torch.jit.trace(model, (ids, torch.ones_like(ids), torch.stack([question] * 2))).save(str(OUT / "model.pt"))

    print("2. fusum run examples/jobs/text/job.toml")
    job = str(Path(__file__).with_name("job.toml"))
    subprocess.run([sys.executable, "-m", "fusum", "run", job, "--overwrite"], check=True)

    print("3. Checking its output against fusum.attr called for one sentence after the other")
    table = pq.read_table(OUT / "scores" / "parts")
    assert table["id"].to_pylist() == list(SENTENCES)
    found = [torch.tensor(row) for row in table["attributions"].to_pylist()]
    for row, ids_of_row in zip(found, tokens, strict=True):
        torch.testing.assert_close(row, direct(model, ids_of_row, question), rtol=1e-3, atol=1e-5)

    print(f"4. What makes each sentence like “{QUESTION}”")
    for sentence, likeness, row, ids_of_row in zip(
        SENTENCES, table["prediction"].to_pylist(), found, tokens, strict=True
    ):
        words = tokenizer.convert_ids_to_tokens(ids_of_row)
        most = sorted(zip(row.tolist(), words, strict=True), key=lambda pair: -abs(pair[0]))[:3]
        print(f"  {likeness:.2f}  {sentence[:50]:50} {', '.join(f'{word} {score:+.2f}' for score, word in most)}")


if __name__ == "__main__":
    main()
