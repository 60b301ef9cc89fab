"""One side of padding.py: steps of imitating the shop's logs, with padding trimmed or not.

``python side_padding.py (trimmed|padded) WORK.json`` is started by `padding.py`.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sides import serve

from lightning_iterppo.customers.shop_agent import scripted_logs
from lightning_iterppo.data.turns import TurnDataModule
from lightning_iterppo.models.adaptation import Adaptation, Computing
from lightning_iterppo.models.language_model import LanguageModel
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.warm_start import WarmStart

warnings.filterwarnings("ignore", message=".*self.trainer.*is not registered.*")


def main() -> None:
    """Loads, and does some steps whenever it is told."""
    side, work = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    model = LanguageModel.load(
        "smollm2",
        Adaptation(top_layers=work["top_layers"]),
        computing=Computing(trim_padding=side == "trimmed"),
        dtype=work["dtype"],
    )
    logs = scripted_logs(work["batch"] * work["steps"], seed=work["seed"])
    data = TurnDataModule(
        logs, renderer=ChatRenderer(model.tokenizer), batch_size=work["batch"], seed=1, unknown_outcomes=True
    )
    module = WarmStart(model)
    module.setup("fit")
    batches = list(data.train_dataloader())

    def steps() -> Mapping[str, Any]:
        for batch in batches:
            for tree in batch.tree.trees:
                tree.features = None  # every piece of work is the whole one
            module.zero_grad()
            module.training_step(batch, 0).backward()
        return {
            "tokens": sum(len(tree) for batch in batches for tree in batch.tree.trees),
            "padded": sum(batch.tree.input_ids.numel() for batch in batches),
        }

    serve(steps)


if __name__ == "__main__":
    main()
