"""The study that all workers share: opening it, signs of life, and what a worker that was killed leaves."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from velodrome.errors import PartlyError
from velodrome.sweeps import address as addresses
from velodrome.sweeps.rows import Status, TrialRow

# Two processes that make the tables at the same moment get into each other's way so often at most.
ATTEMPTS = 8
# A trial whose worker was killed is taken up again so often: settings may be what kills it.
MOST_RETRIES = 2
# Of the trials that get so far, this share goes on (successive halving).
KEPT_SHARE = 3
# The first rung is at this share of the longest training, but never before so many epochs: until then,
# validation accuracy is mostly chance.
FIRST_RUNG, FEWEST_EPOCHS = 9, 3

# Importance is told from so many trials on, of which this best share is compared with all.
ENOUGH_TRIALS, BEST_SHARE = 10, 0.25

# What is noted with a trial.
WORKER, RUN, PROBLEM, DIVERGED = "worker", "run", "problem", "diverged"
SAME_AS, SETTINGS, EPOCHS, SURPLUS = "same_as", "settings", "epochs", "surplus"
RETRY_OF, RETRIES = "retry_of", "retries"


@dataclass(frozen=True)
class OpenStudy:
    """A study and the storage behind it.

    Attributes:
        study: that the workers share.
        storage: where it is kept.
        address: of the storage, with the password.
        grace_s: a worker that has given no sign of life for so many seconds is taken for dead.
    """

    study: optuna.Study
    storage: RDBStorage
    address: str
    grace_s: int

    @property
    def beat_s(self) -> int:
        """Seconds between signs of life."""
        return max(1, self.grace_s // 3)

    def ask(self) -> optuna.Trial:
        """The next trial: one that is to be taken up again, or a new one."""
        with _experimental():
            return self.study.ask()

    @contextlib.contextmanager
    def beating(self, trial: optuna.Trial) -> Iterator[None]:
        """Give signs of life for as long as the block lasts."""
        done = threading.Event()
        self.storage.record_heartbeat(trial._trial_id)

        def beat() -> None:
            while not done.wait(self.beat_s):
                with contextlib.suppress(Exception):  # the storage may be back next time
                    self.storage.record_heartbeat(trial._trial_id)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(self.grace_s)

    def rows(self) -> list[TrialRow]:
        """All trials, by number, but for those that were too many."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if SURPLUS not in trial.user_attrs]
        replaced = {trial.user_attrs.get(RETRY_OF) for trial in trials}
        return [_row(trial, trial.number in replaced) for trial in trials]

    def importance(self) -> tuple[dict[str, float], str | None]:
        """The share of each setting in what tells the best quarter of the trials from the others.

        By PED-ANOVA (S. Watanabe, A. Bansal, F. Hutter, IJCAI 2023, arXiv:2304.10255). Only the order of the
        trials counts: those that were pruned come after all that were not.

        Returns:
            Shares that add up to 1, and None; or none, and why.
        """
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        values = [(trial.value or 0.0) - (trial.state == TrialState.PRUNED) for trial in ended]
        if len(ended) < ENOUGH_TRIALS:
            return {}, f"Importance takes {ENOUGH_TRIALS} trials that have ended; there are {len(ended)}."
        if len(set(values)) == 1:
            return {}, "All trials have the same accuracy."
        ranked = optuna.create_study(direction="maximize")
        for trial, value in zip(ended, values, strict=True):
            ranked.add_trial(
                optuna.create_trial(value=value, params=trial.params, distributions=trial.distributions)
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how few trials there are
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
            return dict(optuna.importance.get_param_importances(ranked, evaluator=evaluator)), None

    def is_surplus(self, trial: optuna.Trial, wanted: int | None) -> bool:
        """Whether other workers began the last trials that were wanted at the same moment; notes it if so."""
        if wanted is None or RETRY_OF in trial.user_attrs:
            return False
        earlier = [row for row in self.rows() if row.number < trial.number and row.status != "retried"]
        if len(earlier) < wanted:
            return False
        trial.set_user_attr(SURPLUS, True)
        self.study.tell(trial, state=TrialState.FAIL)
        return True

    def bury(self) -> None:
        """Fail the trials of workers that are dead, and have each taken up again."""
        with _experimental():
            optuna.storages.fail_stale_trials(self.study)

    def take_up_again(self, trial: FrozenTrial, *, killed: bool = False) -> bool:
        """Put a trial that did not come to its end before those to come.

        Args:
            trial: as it stands.
            killed: with its worker, which must not happen too often.

        Returns:
            Whether it will be taken up again.
        """
        retries = trial.user_attrs.get(RETRIES, 0) + killed
        if retries > MOST_RETRIES:
            return False
        kept = {key: value for key, value in trial.user_attrs.items() if key != WORKER}
        self.study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={**kept, RETRY_OF: trial.number, RETRIES: retries},
                system_attrs=trial.system_attrs,  # the rungs that it has passed
            )
        )
        return True


def _row(trial: FrozenTrial, is_replaced: bool) -> TrialRow:
    noted, curve = trial.user_attrs, trial.intermediate_values
    last = max(curve, default=None)
    problem = noted.get(PROBLEM)
    if trial.state == TrialState.FAIL and not is_replaced:
        problem = problem or "its worker ended before it did"
    began, ended = trial.datetime_start, trial.datetime_complete
    return TrialRow(
        number=trial.number,
        status=_status(trial, is_replaced),
        params=trial.params,
        accuracy=trial.value if trial.value is not None else None if last is None else curve[last],
        epochs=noted.get(EPOCHS, last),
        curve=curve,
        run=noted.get(RUN),
        worker=noted.get(WORKER),
        seconds=(ended - began).total_seconds() if began and ended else None,
        same_as=noted.get(SAME_AS),
        problem=problem,
        settings=noted.get(SETTINGS, {}),
    )


def _status(trial: FrozenTrial, is_replaced: bool) -> Status:
    if trial.state == TrialState.FAIL:
        return "retried" if is_replaced else "failed"
    if trial.state == TrialState.COMPLETE:
        return "diverged" if DIVERGED in trial.user_attrs else "complete"
    others: dict[TrialState, Status] = {
        TrialState.PRUNED: "pruned",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
    }
    return others[trial.state]


@contextlib.contextmanager
def opened(
    address: str, name: str, *, grace_s: int, sampler: str, seed: int, prune: bool, epochs: int
) -> Iterator[OpenStudy]:
    """The study of that name, made where it is missing.

    Args:
        address: of the storage, checked.
        name: of the study.
        grace_s: as in `OpenStudy`.
        sampler: "tpe" or "random".
        seed: of the sampler.
        prune: give up trials that do worse than the others.
        epochs: of the longest training.

    Raises:
        ConfigError: the storage cannot be reached.
    """
    with _quiet():
        open_study: OpenStudy

        def bury(_study: optuna.Study, trial: FrozenTrial) -> None:
            open_study.take_up_again(trial, killed=True)

        storage = None
        try:
            with _experimental():
                storage = _connect(address, grace_s, bury)
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                sampler=NumberedSampler(sampler, seed),
                pruner=pruner_for(epochs) if prune else NopPruner(),
            )
        except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
            if storage:
                storage.engine.dispose()
            raise addresses.cannot_reach(address, error) from None
        open_study = OpenStudy(study, storage, address, grace_s)
        try:
            yield open_study
        except (SQLAlchemyError, StorageInternalError) as error:
            raise PartlyError(
                f"The storage {addresses.shown(address)} does not answer any more: "
                f"{addresses.reason_of(error)}.",
                "When it does, go on with the same command.",
            ) from None
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _connect(address: str, grace_s: int, bury: Callable[[optuna.Study, FrozenTrial], None]) -> RDBStorage:
    """The storage with its tables; made again where another process makes them at the same moment."""
    attempts = 0
    while True:
        attempts += 1
        try:
            return RDBStorage(
                address,
                engine_kwargs=dict(addresses.engine_options(address)),
                heartbeat_interval=max(1, grace_s // 3),
                grace_period=grace_s,
                heartbeat_stale_trial_callback=bury,
            )
        except (SQLAlchemyError, StorageInternalError) as error:
            meets_another = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not meets_another or attempts == ATTEMPTS:
                raise
            time.sleep(random.uniform(0.05, 0.3))


@contextlib.contextmanager
def _experimental() -> Iterator[None]:
    """Signs of life, and guesses about trials that still run, are what Optuna calls experimental.

    It warns too that signs of life are its own business, which they are not with `ask` and `tell`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's own log is silent; what it would say, the sweep says."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def pruner_for(epochs: int) -> BasePruner:
    """Asynchronous successive halving (L. Li et al., arXiv:1810.05934) over the epochs of a training.

    At epochs r, 3r, 9r, ..., where r is a ninth of the longest training and 3 at least, a trial goes on if it
    is among the best third of those that got there.
    """
    return SuccessiveHalvingPruner(
        min_resource=max(FEWEST_EPOCHS, round(epochs / FIRST_RUNG)), reduction_factor=KEPT_SHARE
    )


class NumberedSampler(BaseSampler):
    """A sampler whose choice is a function of the seed, the number of the trial, and the trials before it.

    So several workers never begin with the same trials, and one worker always makes the same sweep.

    Args:
        kind: "tpe" (J. Bergstra et al., NeurIPS 2011) or "random".
        seed: of the sweep.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self._kind, self._seed = kind, seed
        self._of_trial: BaseSampler = RandomSampler(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Choose anew, from a stream of the trial's own."""
        seed = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
        with _experimental():
            # Trials that still run count as bad ones, so that no two workers try the same.
            self._of_trial = (
                TPESampler(seed=seed, constant_liar=True) if self._kind == "tpe" else RandomSampler(seed)
            )
        self._of_trial.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """As the sampler of the trial has it."""
        return self._of_trial.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, object]:
        """As the sampler of the trial has it."""
        return self._of_trial.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> object:
        """As the sampler of the trial has it."""
        return self._of_trial.sample_independent(study, trial, param_name, param_distribution)
