"""What a recipe holds: one dataclass a section, with its defaults. `config_rules` has the ranges.

The comment above a field says what it is and what raising and lowering it does. `customer`, `held_out_customer`,
`logs`, `engine`, `logger` and `callbacks` are open: their keys are the arguments of what their ``_target_`` names. No
torch here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: The sections whose keys belong to the class that ``_target_`` names.
OPEN_SECTIONS = ("customer", "held_out_customer", "logs", "engine", "logger", "callbacks")


@dataclass
class ScratchConfig:
    """A small model made from nothing, for probes and tests."""

    # Width of the hidden state. Higher can express more and is slower; a multiple of 2 × `heads`.
    hidden_size: int = 64
    # Transformer layers. More can express more and are slower.
    layers: int = 2
    # Attention heads. More look at more places at once; each is hidden_size / heads wide.
    heads: int = 4
    # Every word it can read and say. More words make the model larger and the choice harder to learn.
    vocabulary: list[str] = field(default_factory=list)
    # The longest prompt and response together, in tokens.
    max_length: int = 256


@dataclass
class AdaptationConfig:
    """Which weights are trained. The choice is ``model/adaptation=lora``, ``lora-top``, ``dora`` or ``full``."""

    # `lora` trains small matrices beside frozen weights, `dora` the weights' lengths too, which is slower; `full`
    # trains every weight and needs several times the memory.
    kind: str = "lora"
    # LoRA's rank. Higher can change the model more and costs more memory and time; lower keeps it closer to the base.
    rank: int = 16
    # LoRA's scale is alpha / rank. Higher makes each step larger, like a higher learning rate.
    alpha: int = 32
    # Dropout before LoRA's matrices. Above 0 it makes PPO's ratio noisy, since two passes no longer agree.
    dropout: float = 0.0
    # Adapt only the last n layers. Lower is faster (no gradients below them) and can change less; null adapts all.
    top_layers: int | None = None
    # Compute with LoRA's matrices added into the weights, which gives the same and is faster; false for comparison.
    fold: bool = True
    # Compute the layers below the adapted ones once for each row and keep the result: a hidden state a token. False is
    # for comparison, and does without that memory.
    keep_features: bool = True


@dataclass
class ModelConfig:
    """The language model that every part shares."""

    # `smollm2` (embedded, no network), `scratch` (made from nothing), a Hugging Face id, a directory, or a GGUF file.
    id: str = "smollm2"
    # A run, or the directory of one of its policies, to start from: the same model, in any adaptation. There is no warm
    # start then, unless `warm_start.epochs` is given beside it. Null starts from the model as it is.
    start: str | None = None
    # Type of the frozen weights: `auto` picks what this machine is fast at, `float32` is exact, `bfloat16` is half the
    # memory, `nf4` (QLoRA, extra `qlora`) an eighth, and coarser. Weights that are trained are float32 in any case.
    dtype: str = "auto"
    # A system message for every conversation. Null leaves it to the customer (its `system` attribute).
    system: str | None = None
    # The most tokens of a history that are read before an agent message; null reads all. What does not fit loses whole
    # messages after the first ones, down to half of it. Lower is faster on long conversations and forgets more.
    window: int | None = None
    # How many of the first messages a cut history keeps: they often say what it is about.
    window_first: int = 2
    # What id scratch is made of; no other one reads it.
    scratch: ScratchConfig | None = None
    # Compute what the responses of a conversation have in common once; false gives each its own row, for comparison.
    share_prefixes: bool = True
    # Compute rows that are much shorter than others of their batch apart from them, which pads less. False is for
    # comparison.
    trim_padding: bool = True
    # Where the output embedding does not train, make logits once for forward and backward. False is for comparison.
    logits_once: bool = True
    # In 16 bits on a processor, compute the attention weights of short rows again in the backward pass, which is faster
    # than the fused kernel. False is for comparison; checkpointing and compile do without.
    recompute_attention: bool = True
    # Keep only each layer's input for the backward pass and compute the layer again there: much less memory, for one
    # more forward pass.
    checkpointing: bool = False
    # Let torch.compile fuse what the trained layers do in training. Pays on GPUs and in long runs: compiling takes a
    # minute, and a compiler.
    compile: bool = False
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)


@dataclass
class SamplingConfig:
    """How suggestions are sampled while collecting and evaluating. Improvement samples at temperature and top-p 1."""

    # Higher is more varied and explores more, lower is more predictable, 0 always takes the most likely token.
    # Training's log-probabilities are at 1, so what is collected at another temperature is not quite what is improved.
    temperature: float = 1.0
    # Sample only from the most likely tokens that hold this much probability. Lower is safer text and less exploration.
    top_p: float = 1.0
    # The longest suggestion in tokens. Higher allows longer messages and costs time in every phase.
    max_new_tokens: int = 32


@dataclass
class WarmStartConfig:
    """Behaviour cloning of the agent's messages in the logs, before the first iteration. Needs `logs`."""

    # Passes over the logs. More imitates them more closely, and with it their mistakes; 0 leaves it out.
    epochs: int = 2
    # Higher learns faster and may forget fluent English; lower may not reach the logs' manner at all.
    learning_rate: float = 1e-3
    # Optimiser steps until the full learning rate. More starts more gently.
    warmup_steps: int = 10
    # Pull of the trained weights towards 0. Higher imitates a small log less literally.
    weight_decay: float = 0.0
    # Conversations in one optimiser step, over all processes. Higher is steadier and needs more memory; lower takes
    # more steps.
    batch_conversations: int = 8


@dataclass
class CriticConfig:
    """Fitting Q(s, a) to the returns of collected conversations."""

    # What Q is fitted with: `bce` where the outcome is a yes or no (returns from 0 to 1); `mse` or `hl-gauss` where it
    # is an amount. hl-gauss is steadier where amounts differ much; its head cannot be solved for (`solve_head`).
    loss: str = "bce"
    # The least and the greatest return of an amount: hl-gauss fits nothing beyond, mse starts in the middle of them.
    low: float = 0.0
    high: float = 1.0
    # Discount a turn. 1 counts only whether the outcome comes; lower prefers that it comes soon; 0 sees no later turn.
    gamma: float = 1.0
    # λ of the targets that the trunk is tuned to. 1 is what really came (no bias, but all the luck of the turns after);
    # less takes that much of the next turn's Q instead. Costs a pass without gradients an epoch.
    td_lambda: float = 1.0
    # At most this many passes of tuning the trunk. More fits better until it overfits; `patience` then ends it. 0 keeps
    # the trunk as it is (the policy's after the warm start), with `solve_head`.
    epochs: int = 4
    # Higher fits in fewer epochs and is less steady.
    learning_rate: float = 5e-4
    # The same for the scalar head, which starts from zero and can learn faster than the trunk.
    head_learning_rate: float = 3e-3
    # Optimiser steps until the full learning rate. More starts more gently.
    warmup_steps: int = 10
    # Pull of the trained weights towards 0. Higher keeps the critic of few conversations from learning them by heart.
    weight_decay: float = 0.01
    # Conversations in one optimiser step, over all processes. Higher is steadier and needs more memory; lower takes
    # more steps.
    batch_conversations: int = 8
    # Share of conversations held out whole for calibration and early stopping. Higher measures better, trains on less.
    # With `epochs` 0 every conversation is held out once (0.2 makes five folds), and all are trained on in the end.
    validation_fraction: float = 0.2
    # Epochs without improvement on those before the fit stops. Higher costs time, lower may stop by chance.
    patience: int = 2
    # Learn from the logs too. Most of what there is to learn from at first, by other people than the policy.
    use_logs: bool = True
    # First solve for the linear head on the trunk as it is: its optimum, for one pass over the conversations. `epochs`
    # then tunes the trunk from there.
    solve_head: bool = True
    # Precision of the prior on that head's weights. Higher keeps Q closer to the mean, lower fits noise.
    head_prior: float = 3.0
    # How far those weights are believed. 1 takes them as fitted, which a few hundred conversations make too sure; near
    # 0 every action gets nearly the mean. The order of actions is the same.
    head_trust: float = 0.5
    # Turns that head is solved for at most: of larger logs, whole conversations drawn by chance. Higher uses more of
    # them, and so many hidden states of memory; a linear map gains little from more.
    head_turns: int = 20000
    # What the head sees: `last`, the hidden state of a message's last token; `mean`, the mean over the conversation up
    # to there, which says better how a long one goes, and less of two responses to one state.
    pooling: str = "last"
    # Whose hidden states, from 1. Lower costs less, and tells more of what is said and less of what will be said next;
    # null is the last layer.
    layer: int | None = None
    # A question that the model reads after every message, as if the customer asked it, like "Will this conversation end
    # well for the assistant?". The head sees what it makes of it: with `mean` beside the conversation, with `last`
    # alone. Costs the question's tokens once a message. Null asks nothing.
    question: str | None = None
    # Earlier iterations whose conversations are fitted beside the newest. Higher has more data that an older policy
    # made (less noise, more bias); 0 uses the newest only: the critic itself goes on from the iteration before.
    history: int = 0
    # Weigh each of their turns by how likely the policy is to do what was done after it. Less bias, less data; costs a
    # pass without gradients.
    history_weights: bool = False


@dataclass
class PolicyConfig:
    """Token-level PPO against the fitted Q."""

    # How far a token's probability may move in one round before its gradient is cut. Higher learns faster, less safely.
    clip: float = 0.2
    # Higher moves the policy further each step; `kl_stop` ends an improvement that went too far.
    learning_rate: float = 3e-4
    # The same for the value head, which starts from zero and can learn faster than the trunk.
    value_learning_rate: float = 1e-3
    # How far a token's value may move in one round. Lower is steadier, higher follows the rewards sooner.
    value_clip: float = 0.5
    # Optimiser steps until the full learning rate. More starts more gently.
    warmup_steps: int = 4
    # Pull of the trained weights towards 0. Higher keeps adapters small.
    weight_decay: float = 0.0
    # Adam's ε. Higher takes smaller steps where gradients are small, as they are when all responses are about equally
    # good and only noise is left; it must stay well below the gradients that matter: about 5e-5 of an adapter.
    adam_epsilon: float = 1e-8
    # Passes over one round's samples. More reuses them harder and drifts further from the sampler.
    ppo_epochs: int = 2
    # Conversations in one optimiser step, over all processes. Higher is steadier and needs more memory; lower takes
    # more steps.
    batch_conversations: int = 8
    # GAE's λ over the tokens of a response. 1 is unbiased and noisy, lower leans on the value head.
    gae_lambda: float = 0.95
    # Weight of the KL to the policy at the start of the improvement. Higher stays closer, where Q is right.
    kl_coefficient: float = 0.05
    # Weight of a KL to the warm-started policy over the whole run. Higher keeps the text closer to it; 0 is off.
    kl_reference_coefficient: float = 0.0
    # End an improvement when the KL to its start passes this, in nats a response. Lower is safer; null never ends it.
    kl_stop: float | None = 4.0
    # Weight of the value head's loss beside the policy's. Higher trains the baseline faster, at the trunk's expense. 0
    # leaves the head at zero; with gae_lambda 1 all tokens of a response then get its reward minus the others' mean.
    value_coefficient: float = 0.5
    # Weight of an entropy bonus. Higher keeps the text varied, too high makes it noise; 0 is off.
    entropy_coefficient: float = 0.0
    # Whether to give the advantages of a round mean 0 and deviation 1: the learning rate then means the same at any
    # size of reward.
    whiten: bool = True
    # A deviation below this, in units of the reward, is taken for this. Higher moves less when all responses are about
    # equally good, lower lets the critic's noise be scaled up then.
    whiten_floor: float = 0.1
    # Reward of the logged actions, which join the fresh ones: `return` is what they really earned (unbiased, noisy),
    # `q` the critic's value, `mix` the mean of both (a quarter of the noise's variance), `none` leaves logged actions
    # out. Among a few hundred conversations the noise of whole returns drowns what Q says about the fresh ones.
    logged_reward: str = "none"
    # λ of what logged actions earned, over turns. Below 1 the value of the state that an action led to stands in for a
    # part of what came later: less noise, and as wrong as Q is; 1 is the observed return.
    logged_lambda: float = 1.0
    # What a logged action's ratio is clipped around: `anchor` is π_k, so that a whole improvement moves it by `clip` at
    # most; `round` is the policy at the start of each round, with a truncated importance weight, so that every round
    # moves it further. For few, large iterations.
    logged_ratio: str = "anchor"
    # Whether what people wrote themselves in `log_conversations` is a logged action too, and not only its states. For
    # logs of the people that the warm start imitates; their outcomes then teach the policy at once.
    log_actions: bool = False
    # Weight of fresh responses beside logged actions. Lower relies on what was observed, higher on Q: a policy finds
    # what a weak Q overrates. Null takes the share of the held-out returns' variance that Q explains.
    fresh_weight: float | None = 1.0
    # Earlier iterations whose conversations join the newest in every improvement. Higher learns more often from what
    # has been observed, by older policies; 0 uses the newest only.
    history: int = 0
    # Fresh responses to each logged state. More compares alternatives better and costs generation time.
    samples_per_state: int = 2
    # Conversations of the logs whose states join the collected ones in every improvement. More shows the policy where
    # it does not come by itself yet; 0 uses the states that it came to.
    log_conversations: int = 0
    # Rounds of fresh responses in an iteration. More gets more out of the same conversations and relies more on Q.
    rounds: int = 3
    # Logged conversations whose states one round uses. Higher is steadier and costs generation time.
    conversations_per_round: int = 64


@dataclass
class LoopConfig:
    """How often the loop turns and how much it talks to customers."""

    # Passes of collect, evaluate, improve. Each one needs new conversations.
    iterations: int = 3
    # Conversations collected in an iteration. Higher fits Q better; this is what a real customer would pay for.
    conversations: int = 160
    # Conversations for the outcome rate before and after. Higher narrows the 95 % intervals; 0 leaves the rates out.
    evaluation_conversations: int = 240
    # The same for the second figure, with `held_out_customer`. 0 leaves it out.
    held_out_conversations: int = 0
    # Without a customer: the share of the logs, whole conversations, that nothing is trained on, and that say at the
    # end what the policy would earn. Higher narrows that interval; 0 asks nothing. Logs without log-probabilities
    # cannot say it, and none of theirs are held back.
    judge_fraction: float = 0.2
    # Measure the outcome rate after every n-th iteration too, for callbacks that watch it; 0 only before and after.
    evaluate_every: int = 0
    # Conversations talked side by side, in each process: as one ends, the next begins. Higher is faster until memory or
    # cores run out. What is said does not depend on it, up to rounding.
    batch: int = 32
    # The share of conversations that may fail, because their customer raised an error, took too long, or answered what
    # cannot be an answer. Each is lost, and counted; one more stops the run. 0 stops at the first.
    failed_share: float = 0.1
    # Seconds that a customer with `async def` methods may take for an answer. Others see to it themselves.
    customer_timeout: float = 120.0
    # Collect the next iteration's conversations while this one's are learnt from, with the policy that made these: they
    # are one iteration old when they are used, which their versions say; importance weights make up for it in the
    # improvement, and Q is of the older policy. Needs an `engine` of its own. False waits for the newest policy.
    overlap: bool = False


@dataclass
class TrainerConfig:
    """What every phase's `lightning.Trainer` is made with."""

    # auto, cpu, gpu, cuda, mps or tpu.
    accelerator: str = "auto"
    # How many devices, a list of their numbers, or `auto` for all of them. More than one needs a strategy.
    devices: Any = 1
    # fsdp, deepspeed, a name Lightning knows (auto, ddp, …) or {_target_: CLASS, …} for one with arguments.
    strategy: Any = "auto"
    # 32-true is exact; bf16-mixed is faster and lighter where the device supports it. Trained weights are float32 in
    # both; frozen ones are what `model.dtype` says.
    precision: str = "32-true"
    # Gradients longer than this are scaled down. Lower is steadier and slower; null never does it.
    gradient_clip_val: float | None = 1.0
    # Batches in one optimiser step. Higher acts like a larger batch in the same memory.
    accumulate_grad_batches: int = 1
    # Conversations of a batch that are in memory at a time; what is learnt stays the same. Lower needs less memory, and
    # computes all but the last of them twice. `auto` measures how many fit; null is the whole batch.
    micro_batch: Any = None
    # Machines. More than one needs a launcher that starts a process on each.
    num_nodes: int = 1
    # Threads of the arithmetic on the processor. Null leaves it to torch; lower it to share a machine.
    threads: int | None = None


@dataclass
class Recipe:
    """Everything that makes a run. `RUN/recipe.yaml` is this, written out."""

    # The recipe's name: the first folder under `runs/`. Taken from the file when it is not given.
    name: str = ""
    # Same seed, same machine: same run. Customers of training and of evaluation get different seeds from it.
    seed: int = 1
    model: ModelConfig = field(default_factory=ModelConfig)
    # {_target_: import path of a customer class, its arguments}; {} is nobody: everything is learnt from the logs.
    customer: dict[str, Any] = field(default_factory=dict)
    # A second customer, never trained on, for the second figure; {} is none.
    held_out_customer: dict[str, Any] = field(default_factory=dict)
    # Logs for the warm start: {_target_: function, its arguments}, or {path: FILE or list of them}; {} is none.
    logs: dict[str, Any] = field(default_factory=dict)
    # {_target_: import path of a server that collects, its arguments}; {} collects with the weights in memory.
    engine: dict[str, Any] = field(default_factory=dict)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    # name: {_target_: class, its arguments}, or name: null to leave one out.
    logger: dict[str, Any] = field(default_factory=dict)
    # name: {_target_: class, its arguments}, or name: null to leave one out.
    callbacks: dict[str, Any] = field(default_factory=dict)
