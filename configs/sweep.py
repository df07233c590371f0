"""The twelve experiments as data: what each runs on in Hugging Face Jobs, for how long, at which price.

    python -m sousa_jax.launch --sweep=configs/sweep.py --dry_run
    python -m sousa_jax.launch --sweep=configs/sweep.py --local --preset=smoke

A sweep of your own is a file like this one, with a `get_sweep()` that returns other rows:

    Experiment("ast_fast", "configs/ast_lora.py", *A10G, hours=(4, 5), init_from="pretrained/ast",
               overrides={"train.learning_rate": 3e-4, "lora.rank": 4})
"""

from sousa_jax.launch import Experiment

# A flavor of Hugging Face Jobs and dollars an hour. The hours and prices are estimates made before anything ran; in
# the Hub's own list an A100 has risen to 2.50 since (`hf jobs hardware`), with which the twelve come to 121 to 150.
A10G = ("a10g-small", 1.00)  # 24 GB
A100 = ("a100-large", 2.00)  # 80 GB

HARDWARE_AND_HOURS = {
    "htsat_lora": (A10G, (3, 4)),
    "htsat_full": (A100, (8, 10)),
    "htsat_scratch": (A100, (8, 10)),  # no estimate of its own was made: every step costs what one of `full` does
    "beats_lora": (A100, (4, 5)),
    "beats_full": (A100, (10, 12)),
    "beats_scratch": (A100, (10, 12)),  # likewise
    "efficientat_lora": (A10G, (2, 3)),
    "efficientat_full": (A10G, (2, 3)),
    "efficientat_scratch": (A10G, (2, 3)),
    "ast_lora": (A10G, (4, 5)),
    "ast_full": (A10G, (4, 5)),
    "ast_scratch": (A10G, (4, 5)),
}
DOWNLOADABLE = ("beats", "efficientat", "ast")  # HTS-AT's files are behind a page that no program gets through


def get_sweep() -> list[Experiment]:
    rows = []
    for name, (hardware, hours) in HARDWARE_AND_HOURS.items():
        model, strategy = name.split("_")
        rows.append(
            Experiment(
                name,
                f"configs/{name}.py",
                *hardware,
                hours=hours,
                init_from="" if strategy == "scratch" else f"pretrained/{model}",
                convert=model if model in DOWNLOADABLE else "",
            )
        )
    return rows
