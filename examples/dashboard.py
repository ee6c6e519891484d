"""What optuna-dashboard can plot of a search: dashboard.py [RUN]

Every number that was measured is an attribute of its trial. `pip install optuna-dashboard` and
`optuna-dashboard sqlite:///RUN/study.db` show them in a browser, live while the search runs.
"""

import sys
from pathlib import Path

import optuna


run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
storage = f"sqlite:///{run / 'study.db'}"
(name,) = optuna.get_all_study_names(storage)
study = optuna.load_study(study_name=name, storage=storage)
done = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
columns = sorted({key for trial in done for key, value in trial.user_attrs.items() if isinstance(value, int | float)})
for column in columns:
    values = [trial.user_attrs[column] for trial in done if column in trial.user_attrs]
    print(f"{column:40} {min(values):12.5g} to {max(values):12.5g} in {len(values)} trials")
