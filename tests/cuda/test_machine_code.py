"""Reading machine code of GPUs as nvdisasm prints it: jumps, loops, what can be reached."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import machine_code


def test_loops_are_found_by_the_way_back():
    text = """
	.section	.text.f,"ax",@progbits
        /*0000*/                   MOV R1, R2 ;
.L_x_0:
        /*0010*/                   FADD R1, R1, R1 ;
        /*0020*/              @P0 BRA `(.L_x_0) ;
        /*0030*/                   EXIT ;
"""
    code = machine_code.functions(text)["f"]
    (loop,) = machine_code.inner_loops(code)
    assert [one.name for one in loop] == ["FADD", "BRA"]


JUMPS = """
	.section	.text.outer,"ax",@progbits
        /*0000*/                   MOV R1, R2 ;
.L_x_0:
        /*0010*/                   FADD R1, R1, R1 ;
.L_x_1:
        /*0020*/                   FMUL R1, R1, R1 ;
        /*0030*/                   BRA.DIV UR4, `(.L_x_9) ;
        /*0040*/              @!PT BRA `(.L_x_9) ;
.L_x_2:
        /*0050*/                   BRA.U !UP1, `(.L_x_1) ;
        /*0060*/              @!P1 CALL.REL.NOINC `(.L_x_3) ;
        /*0070*/                   BRA `(.L_x_0) ;
.L_x_3:
        /*0080*/                   STL [R1], R2                 (*"SpillRefill"*) ;
        /*0090*/              @!P0 EXIT ;
        /*00a0*/                   CALL.ABS.NOINC `(__division) ;
        /*00b0*/                   EXIT ;
.L_x_9:
        /*00c0*/                   LDL R1, [R1] ;
        /*00d0*/                   BRA `(.L_x_2) ;
.L_x_10:
        /*00e0*/                   BRA `(.L_x_10);
.L_x_12:
	.section	.text.other,"ax",@progbits
        /*0000*/                   RET.ABS.NODEC R20 0x0 ;
.L_x_11:
        /*0010*/                   DADD R1, R1, R1 ;
"""


def test_jumps():
    functions = machine_code.functions(JUMPS)
    assert list(functions) == ["outer", "other"]
    outer, other = functions.values()
    (inner,) = machine_code.inner_loops(outer)  # and not the loop around it
    assert [one.name for one in inner] == ["FMUL", "BRA.DIV", "BRA", "BRA.U"]
    names = [outer[i].name for i in sorted(machine_code.successors(outer))]
    assert "LDL" not in names  # a warp goes that way only when its lanes went apart
    assert names[-4:] == ["STL", "EXIT", "CALL.ABS.NOINC", "EXIT"]
    assert other[0].labels == ()
    assert list(machine_code.successors(other)) == [0]
    assert outer[8].operands == "[R1], R2"
    assert outer[6].target == ".L_x_3"  # a jump
    assert outer[10].target is None  # a call


def test_a_jump_back_from_a_way_around_is_no_loop():
    text = """
	.section	.text.f,"ax",@progbits
        /*0000*/              @P0 BRA `(.L_x_1) ;
        /*0010*/                   FMUL R1, R1, R1 ;
.L_x_0:
        /*0020*/                   EXIT ;
.L_x_1:
        /*0030*/                   FADD R1, R1, R1 ;
        /*0040*/                   BRA `(.L_x_0) ;
"""
    assert machine_code.inner_loops(machine_code.functions(text)["f"]) == []
