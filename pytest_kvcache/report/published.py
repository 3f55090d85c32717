"""What the reference article published, to be drawn beside a run's own figures: facts, and no more than it states.

The article's table holds its pNFS tier against GPU only and against GPU + CPU: the most that each figure gained over
all of its context lengths. Its chart's points are not published as numbers, so none are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What the figures are of, for captions.
SETTING = (
    "the reference article: Qwen3-8B, two vLLM servers with one GPU each, LMCache inside vLLM, 15 users, 20 rounds, "
    "2 requests/s, 20 minutes a context length"
)


@dataclass(frozen=True)
class Published:
    """One gain that was published.

    Args:
        tier: The tier, as the article names it.
        against: What it is held against, by the names of `series.YARDSTICKS`.
        figure_key: Of `series.FIGURES`.
        change: The most over all context lengths, as a share.
    """

    tier: str
    against: str
    figure_key: str
    change: float


PUBLISHED = (
    Published("pNFS over RDMA (published)", "gpu", "tokens_per_s", 2.01),
    Published("pNFS over RDMA (published)", "gpu", "ttft_mean_s", -0.99),
    Published("pNFS over RDMA (published)", "gpu", "decode_tokens_per_s", 2.23),
    Published("pNFS over RDMA (published)", "cpu", "tokens_per_s", 1.57),
    Published("pNFS over RDMA (published)", "cpu", "ttft_mean_s", -0.86),
    Published("pNFS over RDMA (published)", "cpu", "decode_tokens_per_s", 1.74),
    Published("S3 appliance (published)", "gpu", "ttft_mean_s", -0.99),
    Published("S3 appliance (published)", "cpu", "ttft_mean_s", -0.54),
)
