"""Does a plug-in keep its contract? For authors of rewards and policies, in their own tests.

    from dragon.testing import check_reward
    def test_my_reward(): check_reward(MyReward())

Knows the protocols and no plug-in. What is wrong is collected and raised at once as a `PluginError`, each fault
with the method that commits it and what is expected; what runs but will train badly is a warning. Each clause
checked here is one that the trainer or the evaluation relies on. `dragon check NAME` and `dragon check policy NAME`
do the same from the command line.
"""

from dragon.faults import TrainsBadly
from dragon.testing.policies import CheckedPolicy, check_policy
from dragon.testing.rewards import Checked, check_reward, example_clips

__all__ = ["Checked", "CheckedPolicy", "TrainsBadly", "check_policy", "check_reward", "example_clips"]
