#include "python_tape.h"

#include "observer.h"

#include <torch/csrc/utils/pybind.h>

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <mutex>

namespace py = pybind11;

namespace hesse {

namespace {

struct Player {
  Tape tape;
  std::unique_ptr<Observer> observer;
  std::mutex busy;  // a run has one memory
};

// `reads` is called by ops, which hold no GIL.
void start(Player& p, const py::function& reads) {
  p.observer = std::make_unique<Observer>(p.tape, [reads](const std::string& op) {
    const py::gil_scoped_acquire gil;
    reads(op);
  });
}

}  // namespace

void bind_tape(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  py::register_exception<Changed>(m, "Changed", PyExc_RuntimeError);
  m.def("is_recording", [] { return kernels::recorder() != nullptr; });
  py::class_<Player>(m, "Tape")
      .def(py::init<>())
      .def("start", &start, py::arg("reads"))
      .def("stop", [](Player& p) { p.observer.reset(); })
      .def(
          "finish",
          [](Player& p, std::vector<Tensor> inputs, const std::vector<Tensor>& outputs) {
            p.tape.finish(std::move(inputs), outputs);
            return p.tape.refusal();
          },
          py::arg("inputs"), py::arg("outputs"))
      .def("__len__", [](const Player& p) { return p.tape.size(); })
      .def("fits", [](const Player& p, const std::vector<Tensor>& given) { return p.tape.fits(given); })
      .def(
          "play",
          [](Player& p, const std::vector<Tensor>& given) {
            const std::scoped_lock lock(p.busy);
            p.tape.load(given);
            p.tape.run(0, p.tape.size());
            return p.tape.take();
          },
          py::arg("inputs"), release())
      .def(
          "load", [](Player& p, const std::vector<Tensor>& given) { p.tape.load(given); }, py::arg("inputs"),
          release())
      .def(
          "run", [](Player& p, size_t begin, size_t end) { p.tape.run(begin, end); }, py::arg("begin"),
          py::arg("end"), release())
      .def(
          "take", [](Player& p) { return p.tape.take(); }, release())
      .def(
          "only_on", [](const Player& p, const Tensor& like) { return p.tape.only_on(like.device()); },
          py::arg("like"))
      .def(
          "first_of_outputs", [](const Player& p, size_t n) { return p.tape.first_of_outputs(n); },
          py::arg("bytes"))
      .def("pin", [](Player& p, size_t end) { p.tape.pin(end); }, py::arg("end"));
}

}  // namespace hesse
