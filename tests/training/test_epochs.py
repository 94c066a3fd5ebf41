from agenticrec_jax.training.epochs import batch_at, shuffled_epochs


def test_every_pass_has_every_item_once_in_an_order_of_its_own():
    passes = shuffled_epochs(range(7), seed=3, epochs=3)
    seen = sum((batch_at(passes, step, 4) for step in range(6)), [])
    orders = [seen[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert batch_at(passes, 5, 4) == [seen[20]] and batch_at(passes, 6, 4) == []


def test_a_step_is_a_function_of_the_seed_and_the_step():
    endless = shuffled_epochs(range(7), seed=3)
    assert batch_at(endless, 1000, 4) == batch_at(shuffled_epochs(range(7), seed=3), 1000, 4)
    assert len(batch_at(endless, 1000, 4)) == 4
    whole = [shuffled_epochs(range(7), seed=seed, epochs=1)[:] for seed in (3, 4)]
    assert list(whole[0]) != list(whole[1])
