"""How models word their answers: ways to reply with a letter, a line each.

`{X}` is the letter, `{x}` the same in small, `{other}` another option's letter, `⏎` a line break, `⇥` a tab.
"""

from __future__ import annotations

_LINES = r"""
{X}
{x}
({X})
({x})
{X}.
{X})
{x})
{x}.
({X}
[{X}]
{{X}}
<{X}>
"{X}"
'{X}'
“{X}”
`{X}`
**{X}**
**{X}.**
**({X})**
*{X}*
__{X}__
# {X}
- {X}
> {X}
${X}$
\boxed{{X}}
$\boxed{{X}}$
\[ \boxed{\text{{X}}} \]
The final answer is $\boxed{{X}}$.
\text{Answer: } \mathbf{{X}}
{X}</s>
{X}<|im_end|>
{X}<|endoftext|>
{X} <eos>
<s> {X} </s>
{X}[/INST]
<b>{X}</b>
<p>{X}</p>
<answer>{X}</answer>
<answer> ({X}) </answer>
<ANSWER>{X}.</ANSWER>
<answer>{X}
{X}</answer>
<final_answer>{X}</final_answer>
<answer>Option {X} best describes it.</answer>
<answer>\boxed{{X}}</answer>
<think>maybe {other}</think><answer>{X}</answer>
<think>maybe {other}</think>{X}
<think>It could be {other}.⏎⏎</think>⏎The answer is {X}.
maybe {other}, a man walks</think>{X}
<think>the answer is {other} <answer>{X}</answer>
<think>I could write <answer>{other}</answer> here</think><answer>{X}</answer>
<think>perhaps {other}</think>I would go with {X} here.<|im_end|>
<thinking>The answer is {other}?</thinking> {X}
<reasoning>Option {other} shows a man.</reasoning>{X}.
<think></think>{X}
<|begin_of_thought|>maybe {other}<|end_of_thought|><|begin_of_solution|>{X}<|end_of_solution|>
<|START_THINKING|>{other}<|END_THINKING|>{X}
[THINK]Option {other} is tempting.[/THINK]{X}
◁think▷maybe {other}◁/think▷{X}
<|begin_of_box|>{X}<|end_of_box|>
The letter {other} may mislead. <answer>{X}</answer>
<SUMMARY>A man walks.</SUMMARY><REASONING>Option {other} is close.</REASONING><CONCLUSION>{X}</CONCLUSION>
{X} because the light is green.
{X} because of the light
{X}, because the light is green.
{X}, since it moves
{X} since it moves
{X} as the video shows
{X} is correct.
{X} is right
{X} is the answer.
{X} is the correct answer
{X} is my final answer.
{X} is the best option because a man walks.
{X} would be the best choice.
{X} would be my choice
{X} seems right.
{X} seems to be the most plausible
{X} looks right to me
{X} fits best.
{X} best describes the video.
{X} best matches what happens
{X} most accurately describes the scene.
{X} most likely.
{X} describes the scene.
{X} matches the video
{X} it is.
{X} here.
{X} – it moves
{X} — because a man walks
{X}: it moves
{X} - it moves
{X} (it moves)
{X}; it moves
{X}! It moves.
{X}⏎⏎Explanation: a man walks.
{X} Explanation: a man walks.
{X}⇥it moves
Option {X}
option {X}
Option {x}
Option ({X})
option {x})
OPTION {X}
OPTION {X} BEST DESCRIBES THE VIDEO
Option {X}.
Option {X} best describes the video.
Option {X} is correct.
Option {X} is the correct one because a man walks.
Option {X} seems to match the video.
Option {X} shows this.
Option {X} man
Option **{X}**
Option: {X}
Choice {X}
Choice {X} seems right.
choice {x}.
Letter {X}
The letter is {X}.
Answer {X}
Answer: {X}
answer: {x}
Answer:{X}
Answer: ({X})
Answer: **{X}**
**Answer: {X}**
**Answer:** {X}
Answer - {X}
Answer = {X}
ANSWER: {X}
Answer:⏎⏎{X}
### Answer⏎{X}
Answer: {X}⏎Explanation: a man walks past {other}.
Answer: {X}⏎Reason: option {other} is about something else.
Answer: {X}. Option {other} shows something else.
Ans: {X}
My answer: {X}
My answer is {X}.
My final answer is ({X})
Final answer: {X}
Final Answer: Option {X}
Best answer: {X}
Best option: {X}
Best option:({X})
Correct answer: {X}
Correct option: {x}
The answer is {X}
The answer is {X}.
The answer is ({X}).
The answer is ({x}).
The answer is {x}.
The answer is "{X}".
The answer is '{X}'.
The answer is **{X}**.
The answer is: {X}
The answer is:⏎{X}
The answer is: **{X}**
The answer is {X}, because a man walks.
Q: What is it? A: {X}
<|channel|>analysis<|message|>Maybe {other}.<|end|><|start|>assistant<|channel|>final<|message|>{X}<|return|>
<|channel|>analysis<|message|>The answer is {other}.<|end|><|start|>assistant<|channel|>final<|message|>I choose {X}.
<|channel>thought⏎The answer is {other}.<channel|>{X}
The man holds it, which makes {X} correct.
{X} 100%
option {x} is correct
The answer is {x} because a man walks
The answer is {other}. Actually, it's {X}.
The answer is {other}. Wait, no, {X}.
I was going to say {other}, but it's {X}.
{other}? No, {X}.
Is the answer {other}? I don't think so. {X}.
The answer cannot be {other}, so it must be {X}.
Anything but {other}. {X}
It's between {other} and {X}. Final: {X}
The answer is {X} because a man walks.
The answer is {X} based on the video.
The answer is {X} here.
The answer is {X} given the frames.
The answer is {X} man
The answer is {X} according to the frames
The answer is <b>{X}</b> here
The answer is {X}</s>
The answer is clearly {X}.
The answer is most likely {X}.
The answer, I believe, is {X}.
The answer should be {X}
The answer would be {X}.
The answer must be {X}.
The answer has to be {X}.
The answer to the question is {X}.
The answer to this question is {X} based on what I see.
The answer is option {X}.
The answer is option {X} based on the video.
The answer is choice {X} here.
THE ANSWER IS {X} BASED ON THE VIDEO
the answer is {X}
The correct answer is {X}.
The correct answer is {X} as the man walks.
The correct answer is therefore {X}.
The correct option is {X}
The correct option is ({X}) here.
The correct choice is {X} for this video.
The correct one is {X}.
The right one would be {X}.
The best option is {X}.
The best answer for this video is {X} because a man walks.
The most likely answer is {X}
The option that I choose is {X}.
I would go with {X} here.
I would go with {X}.
I would go with option {X} here.
I'd go with {X} for this one.
I'll go with {X}
Going with {X} on this one.
I choose {X}.
I choose {X} because a man walks.
I choose option {X} here.
I would choose {X} in this case.
I pick {X}.
I pick {X} man
My pick is {X}.
I select {X} from the options.
I would select {X} now.
I'd say {X}.
I'd say {X} based on the frames.
I would vote for {X}.
I would opt for {X} here.
I lean towards {X} here.
My guess is {X} for now.
I think {X}
I think it is {X}.
I think {X} is right.
I believe {X} best describes it.
It is {X}.
It's {X} because of the light.
It must be {X}.
Definitely {X}.
Definitely {X} here.
So {X}.
So, {X} is the answer.
Therefore, {X}.
Therefore the answer is {X}.
Hence {X}
Of the options, {X} is best.
Among these, {X} fits best.
From the video, {X} seems correct.
Based on the video, the answer is {X}.
Looking at the frames, a man walks. The answer is {X}.
Sure! The answer is {X} here.
Sure, {X}.
In the video a man walks, so the answer is {X}.
A man walks. The answer is {X}.
A man walks, so I choose {X} here.
The man walks past a car; option {X} says so.
(A man walks.) Answer: {X}
The answer is ({other}). On reflection, the answer is ({X}).
The answer is {other}. On reflection, the answer is {X}.
Answer: {other}⏎Wait, answer: {X}
I choose {other} at first, but now I choose {X} here.
Option {other}? On reflection, option {X}.
{other}. Wait, the answer is {X}
The answer is not {other}. The answer is {X}.
The answer is not {other}, it is {X}.
It isn't {other}, so {X}.
Not {other} but {X}.
{X}, not {other}.
{X} rather than {other}.
{X} (not {other})
{X}, since {other} is wrong.
{X} because {other} is incorrect.
{other} is wrong, so {X}.
{other} does not fit; {X}
Option {X} fits. Option {other} shows something else.
Option {X} is correct because option {other} shows something else.
I would rule out {other}. The answer is {X}.
{"answer": "{X}"}
{"answer": "{X}", "reason": "a man walks"}
{'option': '{X}'}
```⏎{X}⏎```
```json⏎{"answer": "{X}"}⏎```
答案是{X}
选{X}
选{X}因为
{X}。
答案：{X}
"""

STYLES = tuple(line.replace("⏎", "\n").replace("⇥", "\t") for line in _LINES.strip().split("\n"))


def reply(style: str, letter: str, other: str, text: str = "") -> str:
    """A style's reply; `{text}` in it is the option's text."""
    filled = style.replace("{X}", letter).replace("{x}", letter.lower())
    return filled.replace("{text}", text).replace("{other}", other)
