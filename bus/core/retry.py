"""How long to wait before an event is tried again."""

from bus.core.assignment import DeliveryPolicy


def retry_delay_s(policy: DeliveryPolicy, attempt: int, draw: float) -> float:
    """Return the seconds between the end of call number `attempt` (from 1) and the next delivery.

    Full jitter: the delay is drawn from zero to a ceiling that grows with each attempt, so that events which failed
    together do not come again together. `draw` is the caller's, from [0, 1): a log line or a dry run may ask too.
    Source: AWS Architecture Blog, "Exponential Backoff And Jitter".
    """
    try:
        ceiling_s = policy.backoff_initial_s * policy.backoff_factor ** (attempt - 1)
    except OverflowError:
        ceiling_s = policy.backoff_max_s
    return draw * min(ceiling_s, policy.backoff_max_s)
