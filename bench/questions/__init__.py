"""One file per question; each defines `QUESTION`."""

from bench.questions import batch, diagonal, hvp
from bench.questions.question import Question

QUESTIONS: dict[str, Question] = {
    module.QUESTION.name: module.QUESTION for module in (hvp, batch, diagonal)
}
