"""Tests of what an answer costs."""

import torch
from torch import Tensor

from mpcompile.compile.adapt.losses import SingleLabelLoss

LOGITS = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]], requires_grad=True)
TEACHER = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    p, q = (torch.exp(x) / torch.exp(x).sum(-1, keepdim=True) for x in (teacher, student))
    return (p * torch.log(p / q)).sum(-1)


def test_distillation_is_the_divergence_from_the_teacher() -> None:
    torch.testing.assert_close(SingleLabelLoss()(LOGITS, TEACHER, None), kl(TEACHER, LOGITS))


def test_answer_of_the_teacher_costs_nothing() -> None:
    torch.testing.assert_close(SingleLabelLoss()(TEACHER, TEACHER, None), torch.zeros(2))


def test_temperature_softens_both_and_keeps_the_scale() -> None:
    torch.testing.assert_close(SingleLabelLoss(temperature=2.0)(LOGITS, TEACHER, None), 4 * kl(TEACHER / 2, LOGITS / 2))


def test_labels_take_their_share() -> None:
    labels = torch.tensor([2, 1])
    hard = -torch.log_softmax(LOGITS, -1)[torch.arange(2), labels]
    expected = 0.3 * hard + 0.7 * kl(TEACHER, LOGITS)
    torch.testing.assert_close(SingleLabelLoss(label_share=0.3)(LOGITS, TEACHER, labels), expected)


def test_losses_of_other_settings_are_told_apart() -> None:
    assert repr(SingleLabelLoss()) == repr(SingleLabelLoss()) != repr(SingleLabelLoss(temperature=2.0))


def test_gradient_leads_to_the_teacher() -> None:
    logits = LOGITS.detach().clone().requires_grad_()
    SingleLabelLoss()(logits, TEACHER, None).sum().backward()
    expected = torch.softmax(LOGITS, -1) - torch.softmax(TEACHER, -1)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected.detach())
