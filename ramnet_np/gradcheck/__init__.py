"""Finite differences against any forward and backward; ``cases`` holds those that ``ramnet-np gradcheck`` runs."""

from ramnet_np.gradcheck.check import STEP, GradcheckReport, InputReport, gradcheck

__all__ = ["STEP", "GradcheckReport", "InputReport", "gradcheck"]
