"""A baseline of the benchmark against a public implementation: filtered cloning by TRL's `SFTTrainer`.

After ``pip install -e '.[bench]'`` ``python benchmarks/learning/public.py`` runs filtered behaviour cloning on one task
twice from every seed's warm start: with this package's `WarmStart` module, as the benchmark has it, and with TRL's
trainer on the same conversations, tokens, step size, batch size and epochs. Their outcomes must be alike, or the
baseline is not what it is called.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, Final

from methods import METHODS, Imitation, Method
from parts import NoCritic
from run import PASSES, RESULTS, TASKS, Job, run
from run import chosen as tuned

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.files import write_json_atomically
from lightning_iterppo.loop import IterativePPOLoop
from lightning_iterppo.machine import describe_machine
from lightning_iterppo.models.language_model import POLICY

OURS: Final = "filtered-cloning"
THEIRS: Final = "filtered-cloning-trl"


class PublicImitation(Imitation):
    """`Imitation` with TRL's trainer in the place of ours."""

    def imitate(self, chosen: Sequence[Conversation], epochs: int, seed: int) -> None:
        """Fine-tunes on the agent's tokens of whole conversations."""
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        model = self.loop.language_model
        model.activate(POLICY)
        with tempfile.TemporaryDirectory() as folder:
            arguments = SFTConfig(
                output_dir=folder,
                num_train_epochs=epochs,
                per_device_train_batch_size=self.loop.settings.policy_batch,
                learning_rate=self.loop.policy.learning_rate,
                lr_scheduler_type="linear",
                warmup_steps=10,
                adam_beta2=0.98,
                max_grad_norm=1.0,
                seed=seed,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                bf16=False,
                gradient_checkpointing=False,
                max_length=None,
            )
            trainer = SFTTrainer(
                model=model.causal_lm,
                args=arguments,
                train_dataset=Dataset.from_list([self._row(c) for c in chosen]),
                processing_class=model.tokenizer,
            )
            trainer.train()

    def _row(self, conversation: Conversation) -> dict[str, list[int]]:
        tree = self.loop.renderer.render(conversation).tree
        ids, labels = [], []
        for segment in tree.segments:  # nothing branches: no suggestion was edited or rejected
            ids += segment.token_ids
            labels += segment.token_ids if segment.action else [-100] * len(segment.token_ids)
        return {"input_ids": ids, "labels": labels}


def public_cloning(loop: IterativePPOLoop) -> None:
    """Filtered cloning with TRL's trainer."""
    loop.critic_fit = NoCritic()  # type: ignore[assignment]
    loop.improvement = PublicImitation(loop)  # type: ignore[assignment]


def main() -> None:
    """Runs both, and says how far apart they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="questions")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--learning-rate", type=float, help="in place of the chosen one")
    parser.add_argument("--passes", type=int, help="in place of the chosen ones")
    parser.add_argument("--try", dest="trial", action="store_true", help="nothing is written")
    parser.add_argument("overrides", nargs="*", help="key=value for the recipe")
    arguments = parser.parse_args()
    METHODS[THEIRS] = Method(public_cloning)
    regime = next(reversed(PASSES))
    given = arguments.learning_rate and arguments.passes
    settings = {} if given else tuned()[regime][OURS]
    results: list[dict[str, Any]] = []
    for seed in range(1, arguments.seeds + 1):
        for method in (OURS, THEIRS):
            rate = arguments.learning_rate or settings["learning_rate"]
            passes = arguments.passes or settings["passes"]
            job = Job(arguments.task, method, regime, seed, rate, passes, tuple(arguments.overrides))
            result = run(job)
            results.append({**asdict(job), **{key: result[key] for key in ("before", "curve", "after", "seconds")}})
            curve = " ".join(f"{rate:.3f}" for rate in result["curve"])
            print(f"seed {seed} {method}: {result['before']:.3f} [{curve}] {result['after']:.3f}", flush=True)
    for method in (OURS, THEIRS):
        after = [r["after"] for r in results if r["method"] == method]
        print(f"{method}: {statistics.fmean(after):.3f} in the mean of {len(after)} seeds")
    if not arguments.trial:
        today = datetime.now(timezone.utc).date().isoformat()
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_json_atomically(
            RESULTS / "public.json", {"date": today, "machine": describe_machine(), "results": results}
        )


if __name__ == "__main__":
    main()
