"""What is wrong with an implementation, from its outputs alone; and what this machine is."""

from jaxclip.doctor.diagnosis import Diagnosis as Diagnosis
from jaxclip.doctor.diagnosis import diagnose as diagnose
from jaxclip.doctor.variants import Fault as Fault
