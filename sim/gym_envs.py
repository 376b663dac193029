"""The environments under their names in Gymnasium; importing this module registers them.

    gymnasium.make("sim.gym_envs:vla_drive/Town-v0", scenario="town-val/7", action_mode="plan")
    gymnasium.make_vec("sim.gym_envs:vla_drive/Town-v0", 2, "async", {"context": "spawn"}, cameras=False)

Gymnasium 1.0 gave up its `gymnasium.envs` entry points, so an installed package is found by the module before the
colon, or by `import sim.gym_envs` and the name alone.
"""

import gymnasium

COURSE_ENV_ID, TOWN_ENV_ID, LOG_ENV_ID = "vla_drive/Course-v0", "vla_drive/Town-v0", "vla_drive/NuScenesLog-v0"

gymnasium.register(COURSE_ENV_ID, entry_point="sim.env:CourseEnv")
gymnasium.register(TOWN_ENV_ID, entry_point="sim.town_env:TownEnv")
gymnasium.register(LOG_ENV_ID, entry_point="sim.log_env:LogEnv")
