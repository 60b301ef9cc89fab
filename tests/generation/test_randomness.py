"""Every response's own randomness: by its seed alone, and as random as it should be."""

from __future__ import annotations

import torch

from lightning_iterppo.generation.randomness import mixed_seed, seeds_in_turn, uniforms


def test_numbers_come_from_their_seed_alone() -> None:
    found = uniforms([5, 2**63 - 1, 5, 0, 2**64 + 5], 7)
    assert found.shape == (5, 7)
    assert found.dtype == torch.float64
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], found[4])  # modulo 2⁶⁴
    assert len({tuple(row) for row in found.tolist()}) == 3
    # Whoever is asked for beside it, and however many numbers are wanted.
    assert torch.equal(uniforms([3, 5], 3)[1], found[0, :3])
    assert uniforms([], 4).shape == (0, 4)


def test_numbers_are_what_they_were() -> None:
    """They are the same on every machine, so that processes of different ones can share a run out."""
    assert uniforms([5], 3)[0].tolist() == [0.7337459554446363, 0.5905206445727093, 0.20780894066207112]


def test_numbers_of_neighbouring_seeds_are_even_and_independent() -> None:
    found = uniforms(range(4000), 4)
    assert found.min() >= 0 and found.max() < 1
    for column in found.T:
        counts = torch.histc(column, bins=20, min=0, max=1)
        assert ((counts - 200) ** 2 / 200).sum() < 43.8  # 19 degrees of freedom: passed by 99.9 %
    table = torch.corrcoef(torch.cat([found[:-1], found[1:]], dim=1).T) - torch.eye(8, dtype=torch.float64)
    assert table.abs().max() < 4 / 4000**0.5


def test_seeds_are_mixed_from_all_their_parts() -> None:
    found = [mixed_seed(*parts) for parts in ((1, 2, 3), (1, 3, 2), (12, 3), (1, 23), ("1", 2, 3), (1, 2), (-1, 2, 3))]
    assert len(set(found)) == len(found)
    assert all(0 <= seed < 2**63 for seed in found)
    assert mixed_seed(1, 2, 3) == found[0]


def test_seeds_in_turn_do_not_hang_on_how_many_are_asked_for_at_a_time() -> None:
    assert seeds_in_turn(4, 0, 5) == [*seeds_in_turn(4, 0, 2), *seeds_in_turn(4, 2, 3)]
    assert not set(seeds_in_turn(4, 0, 5)) & set(seeds_in_turn(5, 0, 5))
