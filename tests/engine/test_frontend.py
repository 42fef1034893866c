"""The server before the engine: what it hands on, and when."""

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.engine.frontend import Frontend
from moesim.engine.requests import Request

REQUEST_S, TOKEN_S = 2e-3, 1e-6


def request(index: int, at_s: float, tokens: int = 100) -> Request:
    return Request(index, tokens, 1, -1, 0, 0, sent_s=at_s, target=tokens)


def handed_on(sent: list[Request], ahead: bool) -> list[Request]:
    """Requests in the order in which the engine gets them; sent in advance or when their time comes."""
    env, found = simpy.Environment(), list[Request]()
    frontend = Frontend(env, REQUEST_S, TOKEN_S, found.append)

    def send():
        for item in sent:
            if not ahead:
                yield env.timeout(item.sent_s - env.now)
            frontend.receive(item)
        yield env.timeout(0)

    env.process(send())
    env.run()
    return found


def work_s(*items: Request) -> float:
    return sum(REQUEST_S + TOKEN_S * item.input_tokens for item in items)


def test_a_burst_reaches_the_engine_in_two_parts():
    """The first is alone when it comes; the others share the loop until all of them are through."""
    sent = [request(index, 1.0) for index in range(16)]
    found = handed_on(sent, ahead=False)
    assert found[0].ready_s == pytest.approx(1.0 + work_s(sent[0]))
    assert {item.ready_s for item in found[1:]} == {found[1].ready_s}
    assert found[1].ready_s == pytest.approx(1.0 + work_s(*sent))


def test_requests_far_apart_do_not_wait():
    sent = [request(index, 0.1 * index) for index in range(5)]
    for item in handed_on(sent, ahead=True):
        assert item.ready_s - item.sent_s == pytest.approx(work_s(item))


@settings(max_examples=100, deadline=None)
@given(gaps=st.lists(st.sampled_from([0.0, 1e-4, 1e-3, 2.5e-3, 0.05]), min_size=1, max_size=40))
def test_the_server_never_idles_while_requests_wait(gaps: list[float]):
    """Order is kept, no work is lost or done twice, and sending ahead changes nothing."""
    times = np.cumsum(gaps).tolist()
    found = handed_on([request(index, at_s) for index, at_s in enumerate(times)], ahead=False)
    ahead = handed_on([request(index, at_s) for index, at_s in enumerate(times)], ahead=True)
    assert [item.index for item in found] == list(range(len(times)))
    assert [item.ready_s for item in ahead] == pytest.approx([item.ready_s for item in found], rel=1e-12)
    clock = 0.0
    for item in found:  # a queue that never idles ends its work when one that serves in turn does
        clock = max(clock, item.sent_s) + work_s(item)
        assert item.ready_s >= clock - 1e-12
    assert found[-1].ready_s == pytest.approx(clock)
