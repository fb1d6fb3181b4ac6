"""Responses that the math verifier has to take, and others that it mustn't, kind by kind."""

from __future__ import annotations

# kind: [(response, reference), ...] that earn 1, and the same that earn 0

CASES = {
    "reported": (
        [
            ("The answer is \u22123", "-3"), ("The answer is \u20133", "-3"),
            ("in 2018-2019", "2019"), (r"\boxed{18 dollars}", "18"),
            (r"\boxed{\text{18 hours}}", "18"), ("#### **18**", "18"),
            ("The final answer is **18**.", "18"), (r"\boxed{40.}", "40"), ("6 1/2", "6.5"),
            (r"\boxed{1 1/2}", "1.5"), (r"\boxed{3,14}", "3.14"), ("1\u2009000", "1000"),
            ("1\xa0000", "1000"), ("42 m^2", "42"),
            ("**Final Answer:** 42\n\nAsk for 2 more examples if you like.", "42"),
            (r"\boxed{\sqrt{1/n}}", r"\frac{1}{\sqrt{n}}"), (r"\boxed{x<3}", r"(-\infty, 3)"),
            (r"\boxed{(-\infty, 3)}", "x<3"), (r"$\boxed{4}$ and $\boxed{5}$", "4, 5"),
            ("7", ["7", "seven"]), ("seven", ["7", "seven"]),
            ("The answer is seven.", ["7", "seven"]), (r"\boxed{25\%}", r"\frac14"),
            (r"\boxed{\frac14}", r"25\%"), (r"\boxed{25\%}", "25"), (r"\boxed{25}", r"25\%"),
            ("The answer is 42 (see step 3).", "42"), ("The area is 42 m^2.", "42"),
            (r"\boxed{x>5}", r"(5,\infty)"), (r"\boxed{-2\le x\le 7}", r"x \in [-2,7]"),
            (r"\boxed{\frac{1}{49}\begin{pmatrix}16\\48\\24\end{pmatrix}}",
             r"\begin{pmatrix}16/49\\48/49\\24/49\end{pmatrix}"),
            (r"$\$32,\!348$", "32348"), (r"\text{\$18.90}", "18.90"),
            (r"\boxed{\text{\$18.90}}", "18.90"), ("The answer is Monday.", r"\text{Monday}"),
        ], [
            ("The speed is 3e8", "8"), ("1.0e3", "3"), ("The answer is 5-3", "-3"), ("5:30", "30"),
            (r"\boxed{21_7}", "21"), (r"\boxed{4\sqrt(2)}", "4"),
            (r"\boxed{\frac{1}{2006!}}", r"\frac{1}{2004!}"),
            (r"\boxed{\frac{1}{2^{98}}}", r"\frac{1}{2^{99}}"),
            (r"\boxed{1 - \frac{1}{\mathrm{e}}}", r"1 + \frac{1}{\mathrm{e}}"),
            (r"\boxed{1, 3, 5, \ldots, 2n-1}", r"1, 2, \ldots, n"),
            (r"\boxed{\forall x>0, f(x) = 0}", "f(x) = 0"), (r"\boxed{> 18}", "18"),
            (r"\boxed{0,540}", "540"), (r"\boxed{\{-1,6\}}", "(-1,6)"),
            (r"\boxed{\pm\sqrt3}", r"(-\sqrt3,\sqrt3)"), (r"\boxed{(2,1)}", "1,2"),
            (r"\boxed{3r^2}", "3R^2"), (r"\boxed{AB}", "ab"), (r"\boxed{2:3}", r"\frac23"),
            (r"\boxed{1,1,2}", "1,2"), (r"\boxed{6 = 5}", "5"), (r"\boxed{0.0}", "10^{-7}"),
            (r"\boxed{e^{-40}}", "e^{-50}"),
        ]),
    "scientific notation": (
        [
            ("It is 2.5E-3", "0.0025"), (r"\boxed{3 \times 10^8}", "3e8"),
            ("about 3x10^8 m/s", "300000000"), (r"\boxed{1.5\cdot10^{3}}", "1500"),
            ("The temperature is -5\xb0C", "-5"), ("It fell to \u22127.5 degrees.", "-7.5"),
            ("The answer is - 3", "-3"), ("$x = -3$", "-3"), ("x=\u22123", "-3"),
            ("about 6.02e23 molecules", "6.02e23"), ("6.02 \xd7 10\xb2\xb3", "6.02e23"),
            ("It is 1.2\xd710^-3.", "0.0012"), (r"\boxed{1.2 \times 10^{-3}}", "0.0012"),
            (r"$2.5\times10^4$", "25000"), (r"\boxed{10^{3}}", "1000"),
        ], [
            (r"\boxed{3 \times 10^{-8}}", "8"), ("6.02e23", "23"), ("1e-5", "-5"), ("1E5", "5"),
            ("10^-3", "-3"),
        ]),
    "minus signs and dashes": (
        [
            ("pages 10\u201312", "12"), ("The answer is \u22123.5.", "-3.5"),
            ("\\boxed{\u2212\\frac{1}{2}}", "-0.5"), ("It rose from 5 to -3", "-3"),
        ], [
            ("The answer is 10\u201312", "12"),
        ]),
    "mixed numbers": (
        [
            (r"\boxed{6\frac{1}{2}}", "6.5"), (r"\boxed{-2 \frac{3}{4}}", "-2.75"),
            ("\\boxed{6\xbd}", "6.5"), (r"\boxed{\frac{13}{2}}", "6 1/2"),
            ("The ratio is 3:4", "3:4"), (r"\boxed{2\frac{1}{3}}", r"\frac{7}{3}"),
            ("2 1/3 cups", "7/3"), ("-1 1/2", "-1.5"), ("He ran 3 1/2 miles.", "3.5"),
            ("1-1/2", "1.5"),
        ], [
            ("3 1/2", "1/2"), (r"\boxed{3\frac12}", "3/2"),
        ]),
    "units": (
        [
            (r"\boxed{18\text{ cm}}", "18"), (r"\boxed{18}", r"18\text{ cm}"),
            (r"\boxed{18\,\text{cm}^2}", r"18\text{ square centimeters}"),
            (r"\boxed{5\text{ km}}", r"5000\text{ m}"), (r"\boxed{90^\circ}", "90"),
            (r"\boxed{90}", r"90^{\circ}"), (r"\boxed{60\text{ miles per hour}}", "60"),
            (r"\boxed{60\text{ mph}}", "60"), (r"\boxed{12\text{ apples}}", "12"),
            (r"\boxed{12\ \mathrm{kg}}", "12"), (r"\boxed{12kg}", "12"),
            (r"\boxed{100\text{ m/s}}", "100"), (r"\boxed{9.8 \text{ m/s}^2}", "9.8"),
            (r"\boxed{30^\circ\text{C}}", "30"), (r"\boxed{5\text{ ft}}", r"60\text{ in}"),
            (r"\boxed{45^\circ}", r"45\text{ degrees}"), (r"\boxed{2\pi\text{ cm}}", r"2\pi"),
            (r"\boxed{\frac{1}{2}\text{ hour}}", "0.5"),
            (r"\boxed{30\text{ minutes}}", r"\frac12\text{ hour}"),
        ], [
            (r"\boxed{18\text{ cm}}", r"18\text{ m}"), (r"\boxed{3x}", "3"), (r"\boxed{3 x}", "3"),
            ("12 hours and 30 minutes", "12"), (r"\boxed{5m}", "5"),
        ]),
    "intervals and inequalities": (
        [
            (r"\boxed{[2, \infty)}", r"x \ge 2"), (r"\boxed{3 > x}", "x<3"),
            (r"\boxed{(-\infty,1)\cup(3,\infty)}", r"x<1 \text{ or } x>3"),
            (r"\boxed{x<1 \text{ or } x>3}", r"(-\infty,1)\cup(3,\infty)"),
            (r"\boxed{(3,\infty)\cup(-\infty,1)}", r"(-\infty,1)\cup(3,\infty)"),
            (r"\boxed{0<x<1}", "(0,1)"), (r"\boxed{x\le 3}", r"(-\infty,3]"),
            (r"\boxed{(-\infty,3]}", r"x\le3"), (r"\boxed{3\ge x}", r"(-\infty,3]"),
            (r"\boxed{-1<x\le4}", "(-1,4]"), (r"\boxed{x\in(-1,4]}", r"-1<x\le 4"),
            (r"\boxed{4\ge x>-1}", "(-1,4]"), (r"\boxed{\{x \mid x<3\}}", "x<3"),
            (r"\boxed{a\in(0,\frac12)}", "0<a<0.5"),
            (r"\boxed{(-\infty, -2] \cup [2, \infty)}", r"x \le -2 \text{ or } x \ge 2"),
            (r"\boxed{(1, 2)}", "1 < x < 2"), (r"\boxed{\mathbb{R}}", r"(-\infty,\infty)"),
        ], [
            (r"\boxed{x \geq 2}", "x > 2"), (r"\boxed{[0,1]}", "(0,1)"),
            (r"\boxed{x \neq 2}", "x=2"), (r"\boxed{y<3}", "x<3"), (r"\boxed{x<3}", "3"),
            (r"\boxed{x > 3}", "x<3"), (r"\boxed{(-2,2)}", "|x|<2"),
            (r"\boxed{[1, 2]}", "1 < x < 2"),
        ]),
    "lists, sets, tuples": (
        [
            (r"\boxed{\{1,2,3\}}", r"\{3,1,2\}"), (r"\boxed{2, 1}", "1,2"),
            (r"\boxed{(1,2)}", "1,2"), (r"\boxed{1,2}", "(1,2)"), (r"\boxed{\{2,1\}}", "1,2"),
            (r"\boxed{x = 2 \text{ or } x = -2}", r"\pm 2"), (r"\boxed{x=\pm2}", "-2,2"),
            (r"\boxed{-2 \text{ and } 2}", "2,-2"),
            (r"\boxed{1\pm\sqrt{2}}", r"1+\sqrt2, 1-\sqrt2"),
            (r"\boxed{\{1, \frac12\}}", r"\{0.5, 1\}"), (r"\boxed{\{1,1,2\}}", r"\{1,2\}"),
            (r"\boxed{1;2}", "1,2"), (r"\boxed{(1,2,3)}", "(1,2,3)"),
            (r"\boxed{(0,540)}", "(0, 540)"), (r"\boxed{\left(\frac{1}{2}, 3\right)}", "(0.5,3)"),
            (r"\boxed{(3, \frac{\pi}{2})}", r"\left( 3, \frac{\pi}{2} \right)"),
            (r"\boxed{x=1, x=2}", "1,2"), (r"\boxed{x=1 \text{ or } 2}", "2, 1"),
            (r"\boxed{(x,y)=(1,2)}", "(1,2)"), (r"\boxed{x = 1, y = 2}", "(1,2)"),
            ("The solutions are $x = 2$ and $x = 3$.", "2,3"), ("The answers are 2 and 3.", "2,3"),
            ("The answer is $2$ and $3$.", "3,2"), (r"\boxed{\sqrt{3}, -\sqrt{3}}", r"\pm\sqrt{3}"),
            (r"\boxed{2 \pm \sqrt{3}}", r"2-\sqrt3, 2+\sqrt3"),
        ], [
            (r"\boxed{2,1}", "(1,2)"), (r"\boxed{\{1,2\}}", "(1,2)"), (r"\boxed{\pm 2}", "2"),
            (r"\boxed{[3,1,2]}", "[1,2,3]"), (r"\boxed{(1,-2)}", "(1,2)"),
        ]),
    "number bases": (
        [
            (r"\boxed{21_{7}}", "21_7"), (r"\boxed{21_{\text{seven}}}", "21_7"),
            (r"\boxed{12_{10}}", "12"), (r"\boxed{1F_{16}}", "1f_{16}"),
            (r"\boxed{1101_2}", "1101_{2}"), (r"\boxed{1101}", "1101"),
            (r"\boxed{1101_{\text{two}}}", "1101_2"), ("The answer is 110_2.", "110_2"),
        ], [
            (r"\boxed{21_7}", "21_8"), (r"\boxed{15}", "21_7"), (r"\boxed{21}", "21_7"),
            (r"\boxed{101_2}", "101"), (r"\boxed{0x1F}", "31"), (r"\boxed{2A_{16}}", "42"),
        ]),
    "tiny differences": (
        [
            (r"\boxed{0.333333}", r"\frac13"), (r"\boxed{10^{-7}}", "0.0000001"),
            (r"\boxed{0.142857}", r"\frac17"), (r"\boxed{3.141593}", r"\pi"),
            (r"\boxed{1.414213562}", r"\sqrt{2}"),
        ], [
            (r"\boxed{1.0001}", "1"), (r"\boxed{10^{-8}}", "0"), (r"\boxed{0}", "10^{-9}"),
            (r"\boxed{10^{-20}}", "10^{-21}"), (r"\boxed{0.33}", r"\frac13"),
            (r"\boxed{1000001.0}", "10^6"), (r"\boxed{0.00000011}", "0.0000001"),
            (r"\boxed{\frac{1}{10^{9}}}", r"\frac{1}{10^{10}}"), (r"\boxed{2^{-100}}", "0"),
            (r"\boxed{1+10^{-12}}", "1"), (r"\boxed{10^{20}}", "10^{20}+1"),
            (r"\boxed{3.14159}", r"\pi"), (r"\boxed{3.14}", r"\pi"),
        ]),
    "separators": (
        [
            (r"\boxed{1{,}234}", "1234"), (r"\boxed{1\,234}", "1234"),
            (r"\boxed{1 234 567}", "1234567"), ("1\u202f234,5", "1234.5"), ("1'234", "1234"),
            (r"\boxed{1.234,56}", "1234.56"), (r"\boxed{12,5}", "12.5"),
            (r"\boxed{12\,345}", "12345"), (r"\boxed{12~345}", "12345"),
            (r"\boxed{12\ 345}", "12345"), ("12 345 678", "12345678"), ("12\u2009345.5", "12345.5"),
            ("12\xa0345,75", "12345.75"), ("It is 1 234 567 in all.", "1234567"),
            (r"\boxed{1,234,567.89}", "1234567.89"), ("1.234.567", "1234567"),
            (r"\boxed{0,5}", "0.5"), ("Die Antwort ist 3,5.", "3.5"), (r"\boxed{3,5}", "3,5"),
            (r"\boxed{-2,5}", "-2.5"),
        ], [
            (r"\boxed{1,234}", "1.234"), ("1,2,3", "123"), (r"\boxed{3, 14}", "3.14"),
            (r"\boxed{3, 5}", "3.5"), (r"\boxed{1,5}", "15"), ("1,234", "1.234"),
        ]),
    "currency": (
        [
            ("It costs $1,200.50", "1200.50"), ("\u20ac18", "18"), ("\\boxed{\xa318.50}", "18.5"),
            (r"\boxed{18 USD}", "18"), (r"\boxed{50 \text{ cents}}", r"\$0.50"), ("$18", "18"),
            ("18$", "18"), (r"\boxed{\$18}", "18"), (r"\boxed{\$1{,}000}", "1000"),
            ("18 \u20ac", "18"), ("Rs. 500", "500"), ("\u20b9500", "500"),
            (r"\boxed{18\text{ dollars}}", r"\$18"), ("It costs $12.50.", "12.5"), ("-$5", "-5"),
            ("$-5", "-5"),
        ], [
            ("$5 million", "5"), ("\\boxed{\u20ac18}", r"\$18"),
        ]),
    "words": (
        [
            (r"\boxed{\text{monday}}", r"\text{Monday}"), (r"\boxed{Monday}", r"\text{Monday}"),
            ("The answer is **Monday**", "Monday"), (r"\boxed{\text{(B)}}", "B"),
            (r"\boxed{B}", r"\text{(B)}"), (r"\boxed{Yes}", "yes"), (r"\boxed{\text{Yes.}}", "yes"),
            (r"\boxed{\textbf{even}}", r"\text{even}"), ("Tuesday", "Tuesday"),
            ("The answer is: tuesday", "Tuesday"), (r"The answer is \text{Monday}.", "Monday"),
            ("**Answer: Paris**", "Paris"),
            (r"\boxed{\text{Alice and Bob}}", r"\text{Bob and Alice}"),
            (r"\boxed{\text{no solution}}", "No solution"), (r"\boxed{D}", "(D)"),
            ("The answer is (D).", "D"), ("The answer is D", "D"),
            ("The correct answer is **(C)** because...", "C"), ("(C)", "C"),
        ], [
            (r"\boxed{\text{Tuesday}}", r"\text{Monday}"), (r"\boxed{\text{A}}", "B"),
            (r"\boxed{x}", "X"), (r"\boxed{PQ}", "pq"), ("It is Tuesday", ['Tuesday']),
            (r"\boxed{\text{A}}", "a"), ("The answer is (B) 42", "B"),
        ]),
    "marks": (
        [
            ("**42**", "42"), ("The answer is: **42.**", "42"),
            (r"So the answer is **$\frac{3}{4}$**.", "0.75"), ("#### $42", "42"),
            ("#### 42 apples", "42"), ("Answer: 42", "42"), ("**Answer:**\n\n$$42$$", "42"),
            ("The answer is 12/4", "3"), ("The answer is 2 + 3 = 5.", "5"), ("So x = 12.", "12"),
            ("The answer is 2x + 1.", "2x+1"), ("The answer is $2x+1$, which is odd.", "2x+1"),
            (r"\boxed{3:45}", "3:45"), ("#### 1,000", "1000"), ("#### -5", "-5"),
            (r"#### $\frac12$", "0.5"), ("#### 25%", "25"), ("####42", "42"),
            ("#### The answer is 42.", "42"), ("Final answer: **$42**", "42"),
            ("**Final Answer**\n\n42", "42"), ("### Final Answer\n\n$\\boxed{42}$", "42"),
            ("**Final Answer**\n\\[\n\\boxed{42}\n\\]", "42"),
            ("The final answer is:\n\n\\[ x = 42 \\]\n\nLet me know!", "42"),
            ("The answer is 42. I hope it helps, as 7 of 9 do.", "42"),
            ("Thus the answer is\n$$42.$$", "42"), ("answer = 42", "42"),
            ("<answer>42</answer>", "42"), ("The answer isn't 5, but 7", "7"), ("_42_", "42"),
            ("`42`", "42"), ("42.", "42"),
        ], [
            ("between 3 and 5", "[3,5]"), ("The answer is 3-5", "5"),
            ("The result is therefore 2x + 1.", "2x+1"), ("The answer is 3:45", "45"),
            ("at 3:45 pm", "45"), ("42!", "42"),
        ]),
    "boxes": (
        [
            (r"First \boxed{3}. Then \boxed{4}.", "4"), (r"\boxed{4}, \boxed{5}", "5, 4"),
            (r"\boxed{4} and again \boxed{4}", "4"),
            (r"So \boxed{x=4} and \boxed{y=5}.", "x=4, y=5"), (r"\boxed{\boxed{4}}", "4"),
            (r"\boxed{42}. Check: \boxed{42}", "42"), (r"Either \boxed{3} or \boxed{4}", "3,4"),
            (r"\boxed{3}\boxed{4}", "4"), (r"\fbox{7}", "7"),
        ], [
            (r"First \boxed{3}. Then \boxed{4}.", "3"), (r"\boxed{}", "5"), (r"\boxed{x}", "5"),
        ]),
    "matrices": (
        [
            (r"\boxed{\begin{bmatrix}1&2\\3&4\end{bmatrix}}",
             r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
            (r"\boxed{2\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}2\\4\end{pmatrix}"),
            (r"\boxed{\begin{pmatrix} \frac{1}{2} \\ 0.5 \end{pmatrix}}",
             r"\begin{pmatrix} 0.5 \\ \frac12 \end{pmatrix}"),
            (r"\boxed{-\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}-1\\-2\end{pmatrix}"),
            (r"\boxed{\begin{pmatrix}2\\4\end{pmatrix}}", r"2\begin{pmatrix}1\\2\end{pmatrix}"),
            (r"\boxed{\begin{array}{cc}1&2\\3&4\end{array}}",
             r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
        ], [
            (r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}",
             r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
            (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}1&2\end{pmatrix}"),
            (r"\boxed{\begin{bmatrix}1\\2\end{bmatrix}}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
            (r"\boxed{\begin{pmatrix}1&0\\0&1\end{pmatrix}}", "I"),
        ]),
    "percent": (
        [
            (r"\boxed{0.25}", r"25\%"), (r"\boxed{25\%}", "0.25"), ("25 percent", "25"),
            (r"\boxed{50\%}", r"\frac{1}{2}"), (r"\boxed{0.5}", r"50\%"), (r"\boxed{50}", r"50\%"),
            (r"\boxed{50\%}", "50"), ("50 %", "50"), (r"\boxed{12.5\%}", r"\frac18"),
            (r"\boxed{\frac{1}{8}}", r"12.5\%"), (r"\boxed{33\frac13\%}", r"\frac13"),
        ], [
            (r"\boxed{25\%}", r"0.25\%"), (r"\boxed{25\%}", "2500"), (r"\boxed{50\%}", "5"),
        ]),
    "equations and ratios": (
        [
            (r"\boxed{4:6}", "2:3"), (r"\boxed{3+2=5}", "5"), (r"\boxed{x=5}", "5"),
            (r"\boxed{5=x}", "5"), (r"\boxed{5}", "x=5"), (r"\boxed{y=2x+3}", "2x+3"),
            (r"\boxed{2x-y+3=0}", "y=2x+3"), (r"\boxed{x^2+y^2=1}", "1-x^2=y^2"),
        ], [
            (r"\boxed{\frac23}", "2:3"), (r"\boxed{3:2}", "2:3"), (r"\boxed{y=5}", "x=5"),
            (r"\boxed{y=2x+4}", "y=2x+3"),
        ]),
    "formulas": (
        [
            (r"\boxed{0.1x}", r"\frac{x}{10}"),
            (r"\boxed{3\sqrt{2}\text{ cm}}", r"0.03\sqrt2\text{ m}"),
            (r"\boxed{\text{cos}\,\theta}", r"\cos\theta"), (r"\boxed{e^{i\pi}}", "-1"),
            (r"\boxed{\frac{e^x-e^{-x}}{2}}", r"\sinh x"), (r"\boxed{x^{1/2}}", r"\sqrt{x}"),
            (r"\boxed{\sqrt{x^2}}", "|x|"), (r"\boxed{(x+1)^2}", "x^2+2x+1"),
            (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt2}"), (r"\boxed{3+4i}", "4i+3"),
            (r"\boxed{\ln 8}", r"3\ln 2"), (r"\boxed{\sin^2 x + \cos^2 x}", "1"),
            (r"\boxed{2\pi r}", r"2 \pi r"), (r"\boxed{\dfrac{3}{4}}", "0.75"),
            ("sqrt(2)/2", r"\frac{\sqrt2}{2}"), (r"\boxed{\sqrt{2}/2}", r"\frac{\sqrt2}{2}"),
            (r"\boxed{\binom{5}{2}}", "10"), (r"\boxed{5!}", "120"), (r"\boxed{2^{10}}", "1024"),
            (r"\boxed{\emptyset}", r"\varnothing"), (r"\boxed{\infty}", r"+\infty"),
            (r"\boxed{f(x)=2x}", "2x"), (r"\boxed{y=\frac{x}{2}}", "x=2y"), (r"\boxed{a=b}", "b"),
            (r"\boxed{x+y=5}", "5"), (r"\boxed{\frac{x+1}{x-1}}", r"\frac{-x-1}{1-x}"),
            (r"\boxed{\log_{10} 100}", "2"), (r"\boxed{\sin 2x}", r"2\sin x\cos x"),
            (r"\boxed{\tan x}", r"\frac{\sin x}{\cos x}"), (r"\boxed{n!}", "n!"),
            (r"\boxed{(-1)^n}", r"\cos(n\pi)"), (r"\boxed{\frac{n(n+1)}{2}}", r"\frac{n^2+n}{2}"),
            (r"\boxed{x^{2}y}", "yx^2"), (r"\boxed{xyz}", "zyx"),
            (r"\boxed{2\sqrt{3}i}", r"2i\sqrt{3}"), (r"\boxed{e^{i\pi}}", "-1"),
            (r"\boxed{4 \sqrt{2}}", r"\sqrt{32}"), (r"\boxed{|a-b|}", "|b-a|"),
            (r"\boxed{5\cdot 2}", "10"), (r"\boxed{2 + 3}", "5"), (r"\boxed{\frac{10}{5}}", "2"),
            (r"\boxed{.5}", "0.5"), (r"\boxed{+5}", "5"), (r"\boxed{007}", "7"),
        ], [
            (r"\boxed{|x|}", "x"), (r"\boxed{3-4i}", "3+4i"), (r"\boxed{x^2+C}", "x^2"),
            (r"\boxed{9=10}", "10"), (r"\boxed{2+2=5}", "5"), (r"\boxed{5}", "x+y=5"),
            (r"\boxed{p-q}", "q-p"), (r"\boxed{\frac{\pi}{4}}", "45"),
            (r"\boxed{x^{12}}", "x^{1}2"),
        ]),
    "accepted answers": (
        [
            ("7", [7, 'seven']), ("8", "[\"7\", \"8\"]"), ("0.5", 0.5), ("5", 5),
        ], [
            ("8", ["7", "seven"]),
        ]),
}
